"""Do the masks of a synthetic set differ, in place and in shape?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MaskDiversity(NamedTuple):
    """`placed`, `shape`: mean of 1 - IoU over all pairs, 0 (copies) to 1 (no pair overlaps), as the masks lie and with
    their centroids moved onto each other; `area_spread`: standard deviation of the natural logarithm of the areas.
    """

    placed: float
    shape: float
    area_spread: float


def mask_diversity(masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_]) -> MaskDiversity:
    """Compare all pairs of masks; empty masks are left out.

    Args:
        masks: bool `[N,H,W]`, at least two with a defect pixel.

    Raises:
        ValueError: fewer than two masks have a defect pixel.

    >>> left, right = np.eye(4, dtype=bool), np.eye(4, k=1, dtype=bool)
    >>> mask_diversity([left, left]).placed, mask_diversity([left, right]).placed
    (0.0, 1.0)
    """
    used = [np.asarray(mask, bool) for mask in masks]
    used = [mask for mask in used if mask.any()]
    if len(used) < 2:
        raise ValueError(f"{len(used)} masks with a defect pixel; expected at least two")
    areas = np.array([mask.sum() for mask in used], np.float64)
    return MaskDiversity(
        _mean_of_pairs(np.stack(used)), _mean_of_pairs(np.stack(_centred(used))), float(np.log(areas).std(ddof=1))
    )


def _mean_of_pairs(masks: NDArray[np.bool_]) -> float:
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    both = (flat @ flat.T).astype(np.float64)  # counts: exact in float32 up to 16 million pixels
    areas = both.diagonal()
    iou = both / (areas[:, None] + areas[None] - both)
    count = len(masks)
    return float(max(0.0, 1 - (iou.sum() - count) / (count * (count - 1))))


def _centred(masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Each mask moved by whole pixels on a canvas that no mask can leave."""
    height, width = masks[0].shape
    moved = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        canvas = np.zeros((2 * height, 2 * width), bool)
        # half a pixel always goes the same way, or equal shapes would miss each other
        down, right = (int(np.floor(places.mean() + 0.5)) for places in (rows, columns))
        canvas[rows - down + height, columns - right + width] = True
        moved.append(canvas)
    return moved
