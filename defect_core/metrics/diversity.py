"""Diversity of the masks of a synthetic set, in position and in shape."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MaskDiversityResult(NamedTuple):
    """Result of `mask_diversity`.

    Attributes:
        placed: mean of 1 - IoU over all pairs of masks, 0 (copies) to 1 (no pair overlaps).
        shape: the same after all centroids are moved to one point.
        area_spread: standard deviation of the natural logarithm of the areas.
    """

    placed: float
    shape: float
    area_spread: float


def mask_diversity(masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_]) -> MaskDiversityResult:
    """Returns the diversity over all pairs of masks that have a defective pixel.

    Args:
        masks: bool `[N,H,W]`, at least two with a defective pixel.

    Raises:
        ValueError: fewer than two masks have a defective pixel.

    >>> left, right = np.eye(4, dtype=bool), np.eye(4, k=1, dtype=bool)
    >>> mask_diversity([left, left]).placed, mask_diversity([left, right]).placed
    (0.0, 1.0)
    """
    defective = [np.asarray(mask, bool) for mask in masks]
    defective = [mask for mask in defective if mask.any()]
    if len(defective) < 2:
        raise ValueError(f"{len(defective)} masks with a defective pixel; expected at least two")
    areas = np.array([mask.sum() for mask in defective], np.float64)
    return MaskDiversityResult(
        _mean_of_pairs(np.stack(defective)),
        _mean_of_pairs(np.stack(_centred(defective))),
        float(np.log(areas).std(ddof=1)),
    )


def _mean_of_pairs(masks: NDArray[np.bool_]) -> float:
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    intersection = (flat @ flat.T).astype(np.float64)  # counts are exact in float32 up to 16 million pixels
    areas = intersection.diagonal()
    iou = intersection / (areas[:, None] + areas[None] - intersection)
    count = len(masks)
    return float(max(0.0, 1 - (iou.sum() - count) / (count * (count - 1))))


def _centred(masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """The masks, moved by whole pixels to the centre of a canvas of twice their size."""
    height, width = masks[0].shape
    centred = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        canvas = np.zeros((2 * height, 2 * width), bool)
        # Halves are always rounded up, so that equal shapes stay aligned.
        row, column = (int(np.floor(indices.mean() + 0.5)) for indices in (rows, columns))
        canvas[rows - row + height, columns - column + width] = True
        centred.append(canvas)
    return centred
