"""From a soft map to a mask, and what makes a mask unfit: rules that the methods' mask makers share."""

import numpy as np
from numpy.typing import NDArray

from defect_core.data.masks import components

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]


def isodata(values: Values, tolerance: float = 1e-4) -> float:
    """Ridler and Calvard's threshold: halfway between the means of what lies at or above it and of what lies below.

    Begins at the overall mean and moves until the change is at most `tolerance`. A constant image gives its value.

    Args:
        values: any shape, not empty.
        tolerance: in units of the values.
    """
    flat = np.asarray(values, np.float64).ravel()
    level = float(flat.mean())
    while True:
        above = flat >= level
        if above.all() or not above.any():
            return level
        moved = float((flat[above].mean() + flat[~above].mean()) / 2)
        if abs(moved - level) <= tolerance:
            return moved
        level = moved


def threshold(values: Values, level: float) -> Mask:
    """What lies above `level`, which itself does not count; bool, of the values' shape."""
    return np.asarray(values) > level


def strongest(values: Values, share: float) -> Mask:
    """The `share` (0 to 1) of pixels with the highest values, at least one; of equals the first in reading order."""
    flat = np.asarray(values).ravel()
    wanted = max(1, round(share * flat.size))
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[:wanted]] = True
    return chosen.reshape(np.shape(values))


def drop_small(mask: Mask, min_area: int) -> Mask:
    """The mask without its 8-connected parts of fewer than `min_area` pixels."""
    kept = np.zeros_like(mask, dtype=bool)
    for part in components(mask, min_area):
        kept |= part
    return kept


def touches_border_too_much(mask: Mask, share: float = 1 / 3) -> bool:
    """Whether more than `share` of one of the four border rows and columns is set (AnomalyDiffusion's rule: a third).

    A mask generator's failures are frames and half planes, and both show at the border.
    """
    mask = np.asarray(mask, bool)
    return any(bool(line.mean() > share) for line in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def inside_foreground(mask: Mask, foreground: Mask, share: float = 0.5) -> Mask:
    """The part of a mask that lies on the object; empty where less than `share` of it does, for it missed the object.

    Args:
        mask, foreground: bool [H, W].
        share: 0 to 1, of the mask's area.
    """
    kept = mask & foreground
    return kept if kept.sum() >= share * mask.sum() else np.zeros_like(kept)
