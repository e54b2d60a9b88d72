"""Several defects in one image: which ones a request names, and which part of its mask belongs to each."""

from collections.abc import Sequence

import numpy as np

from defect_core.data.masks import components
from defect_core.generators.base import Mask

JOINT = "+"


def named_defects(defect: str, fitted: Sequence[str]) -> list[str]:
    """The defects that `a+b` asks for; a fitted defect with such a name goes first, and is one."""
    return [defect] if defect in fitted else [part.strip() for part in defect.split(JOINT)]


def split_mask(mask: Mask, count: int) -> list[Mask]:
    """Divide a mask bool [H, W] among `count` defects: disjoint parts, whose union is the mask.

    Whole connected parts are dealt out, largest first, each to whoever has the smallest area so far. Where there are
    fewer parts than defects, the largest is cut across its longer axis first, through the middle of its area.
    A mask of fewer pixels than defects leaves some without a place.
    """
    parts = components(mask)
    while len(parts) < count:
        largest = max(parts, key=lambda part: int(part.sum()))
        if largest.sum() < 2:
            break
        parts = [part for part in parts if part is not largest] + list(_halves(largest))
    parts.sort(key=lambda part: -int(part.sum()))
    shares = [np.zeros_like(mask) for _ in range(count)]
    for part in parts:
        least = min(range(count), key=lambda index: int(shares[index].sum()))
        shares[least] |= part
    return shares


def _halves(part: Mask) -> tuple[Mask, Mask]:
    """Two halves of equal area on either side of a line across the part's first principal axis."""
    points = np.argwhere(part).astype(np.float64)
    centred = points - points.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    axis = axis * (1 if axis[np.abs(axis).argmax()] > 0 else -1)  # the sign that eigh gives is arbitrary
    order = np.argsort(np.round(centred @ axis, 9), kind="stable")
    first = np.zeros_like(part)
    rows, columns = np.argwhere(part)[order[: len(order) // 2]].T
    first[rows, columns] = True
    return first, part & ~first
