"""Binary masks: bringing them to another grid without losing a defect, components, bounding boxes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

POLICIES = ("max", "area", "nearest", "bilinear")
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def downsample_mask(mask: NDArray[np.bool_], size: tuple[int, int] | int, policy: str = "max") -> NDArray[np.bool_]:
    """Bring a mask bool [H, W] to `size` (height, width; an int is both), also when that is larger.

    `max`: a cell is set when any part of it is covered by the defect, so no component ever vanishes.
    `area`: a cell is set when more than half of it is covered; a component (8-connected) that would vanish
    falls back to `max`. `nearest`: the pixel under the cell's centre. `bilinear`: anti-aliased triangle filter,
    at least one half. The last two may lose small defects.

    Raises:
        ValueError: unknown policy, or a size below one.
    """
    mask = np.asarray(mask, dtype=bool)
    height, width = (size, size) if isinstance(size, int) else size
    if policy not in POLICIES:
        raise ValueError(f"unknown mask policy {policy!r}; expected one of {', '.join(POLICIES)}")
    if height < 1 or width < 1:
        raise ValueError(f"size {(height, width)}; expected at least one pixel each way")
    if mask.shape == (height, width):
        return mask.copy()
    if policy == "nearest":
        rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
        return mask[np.ix_(rows, columns)]
    if policy == "bilinear":
        soft = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(soft) >= 0.5
    cover = _coverage(mask, height, width)
    touched = cover > 1e-9
    if policy == "max":
        return touched
    result = cover > 0.5 + 1e-9
    for part in components(mask):
        touched_by_part = _coverage(part, height, width) > 1e-9
        if not (result & touched_by_part).any():
            result |= touched_by_part
    return result


def components(mask: NDArray[np.bool_], min_area: int = 1) -> list[NDArray[np.bool_]]:
    """The 8-connected parts of a mask, each bool [H, W], largest first (ties in reading order)."""
    labels, count = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = sorted(range(count), key=lambda index: (-areas[index], index))
    return [labels == index + 1 for index in order if areas[index] >= min_area]


def touches_border(mask: NDArray[np.bool_]) -> bool:
    """Whether the border of the image cuts the mask, bool [H, W]."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the set pixels; bottom and right are exclusive.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("the mask is empty; expected at least one set pixel")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _coverage(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.float64]:
    """Fraction of each cell that is set, exact also when the sizes do not divide."""
    rows, columns = _overlap(mask.shape[0], height), _overlap(mask.shape[1], width)
    cover: NDArray[np.float64] = rows @ mask.astype(np.float64) @ columns.T
    return cover


def _overlap(old: int, new: int) -> NDArray[np.float64]:
    """[new, old] matrix: which fraction of each new cell every old pixel covers."""
    edges_new = np.arange(new + 1) * (old / new)
    edges_old = np.arange(old + 1)
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    return np.clip(high - low, 0, None) * (new / old)
