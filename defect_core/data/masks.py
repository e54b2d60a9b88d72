"""Operations on binary masks: resampling that keeps every defect, connected components, bounding boxes."""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

POLICIES = ("max", "area", "nearest", "bilinear")
_ROUNDING = 1e-9  # fraction of a cell; smaller coverage is a rounding error of the matrix product


def downsample_mask(mask: NDArray[np.bool_], size: tuple[int, int] | int, policy: str = "max") -> NDArray[np.bool_]:
    """Return a mask bool [H, W] resampled to `size`, which may also be larger.

    Args:
        mask: bool [H, W].
        size: (height, width); an int stands for both.
        policy: how a cell of the result is decided.
            `max`: True if the defect covers any part of the cell, so no component vanishes.
            `area`: True if the defect covers more than half of the cell. An 8-connected component that would vanish
            is resampled by `max`.
            `nearest`: the pixel under the centre of the cell; may lose small defects.
            `bilinear`: antialiased triangle filter, at least one half; may lose small defects.

    Raises:
        ValueError: unknown policy, or a size below 1.
    """
    mask = np.asarray(mask, dtype=bool)
    height, width = (size, size) if isinstance(size, int) else size
    if policy not in POLICIES:
        raise ValueError(f"unknown mask policy {policy!r}; expected one of {', '.join(POLICIES)}")
    if height < 1 or width < 1:
        raise ValueError(f"size {(height, width)}; expected at least one pixel in height and width")
    if mask.shape == (height, width):
        return mask.copy()
    if policy == "nearest":
        rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
        return mask[np.ix_(rows, columns)]
    if policy == "bilinear":
        levels = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(levels) >= 0.5
    coverage = _coverage(mask, height, width)
    touched = coverage > _ROUNDING
    if policy == "max":
        return touched
    result = coverage > 0.5 + _ROUNDING
    for component in components(mask):
        touched_by_component = _coverage(component, height, width) > _ROUNDING
        if not (result & touched_by_component).any():
            result |= touched_by_component
    return result


def components(mask: NDArray[np.bool_], min_area: int = 1) -> list[NDArray[np.bool_]]:
    """Return the 8-connected components of a mask, each bool [H, W], largest first (ties in reading order).

    Args:
        mask: bool [H, W].
        min_area: smaller components, in pixels, are left out.
    """
    labels, count = label_components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = sorted(range(count), key=lambda index: (-areas[index], index))
    return [labels == index + 1 for index in order if areas[index] >= min_area]


def label_components(mask: NDArray[np.bool_], connectivity: int = 8) -> tuple[NDArray[np.int32], int]:
    """Return the labels int32 [H, W] of the connected components, 0 for the background, and their number.

    Args:
        mask: bool [H, W].
        connectivity: 4 (pixels that share an edge) or 8 (pixels that share an edge or a corner).
    """
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    return cast(tuple[NDArray[np.int32], int], ndimage.label(mask, structure))


def fill_small_holes(mask: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] with its 4-connected holes of less than `area` pixels set."""
    labels, count = label_components(~mask, connectivity=4)
    small = np.bincount(labels.ravel(), minlength=count + 1) < area
    small[0] = False
    return mask | small[labels]


def touches_border(mask: NDArray[np.bool_]) -> bool:
    """Return whether a pixel of the mask bool [H, W] is at the border of the image."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the True pixels; bottom and right are exclusive.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("the mask is empty; expected at least one set pixel")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _coverage(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.float64]:
    """Return the covered fraction of each cell, exact also if the sizes do not divide each other."""
    rows, columns = _overlap(mask.shape[0], height), _overlap(mask.shape[1], width)
    coverage: NDArray[np.float64] = rows @ mask.astype(np.float64) @ columns.T
    return coverage


def _overlap(old: int, new: int) -> NDArray[np.float64]:
    """Return [new, old]: the fraction of each new cell that every old pixel covers."""
    edges_new = np.arange(new + 1) * (old / new)
    edges_old = np.arange(old + 1)
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    return np.clip(high - low, 0, None) * (new / old)
