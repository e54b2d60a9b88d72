"""Several defects in one image: the defects that a request names, and the part of the mask that each one gets."""

from collections.abc import Sequence

import numpy as np

from defect_core.data.masks import Component, components
from defect_core.generators.base import Mask

SEPARATOR = "+"


def split_defect_names(defect: str, fitted: Sequence[str]) -> list[str]:
    """Return the defects that a request such as `a+b` names; a fitted defect with that name counts as one.

    Args:
        defect: defect of the request.
        fitted: fitted defects.
    """
    return [defect] if defect in fitted else [name.strip() for name in defect.split(SEPARATOR)]


def split_mask(mask: Mask, count: int) -> list[Mask]:
    """Return `count` disjoint masks whose union is the mask.

    Connected components stay whole. The largest goes first, each to the defect with the smallest area so far. If there
    are fewer components than defects, the largest is first cut into two parts of equal area across its longer axis.

    Args:
        mask: bool [H, W]. With fewer pixels than defects some results are empty.
        count: number of defects.
    """
    parts = components(mask)
    while parts and len(parts) < count:
        largest = max(parts, key=lambda part: part.area)
        if largest.area < 2:
            break
        halves = [Component(largest.top, largest.left, half) for half in _cut_in_two(largest.mask)]
        parts = [part for part in parts if part is not largest] + halves
    parts.sort(key=lambda part: -part.area)
    masks, areas = [np.zeros_like(mask) for _ in range(count)], [0] * count
    for part in parts:
        smallest = min(range(count), key=areas.__getitem__)
        part.add_to(masks[smallest])
        areas[smallest] += part.area
    return masks


def _cut_in_two(part: Mask) -> tuple[Mask, Mask]:
    """Return two parts of equal area, on either side of a line across the first principal axis."""
    points = np.argwhere(part).astype(np.float64)
    centred = points - points.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    axis = axis * (1 if axis[np.abs(axis).argmax()] > 0 else -1)  # eigh returns an arbitrary sign
    order = np.argsort(np.round(centred @ axis, 9), kind="stable")
    first = np.zeros_like(part)
    rows, columns = np.argwhere(part)[order[: len(order) // 2]].T
    first[rows, columns] = True
    return first, part & ~first
