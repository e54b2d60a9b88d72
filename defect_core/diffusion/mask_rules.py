"""Rules that turn a soft map into a mask and reject unfit masks, shared by the methods."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]


def isodata_threshold(values: Values, tolerance: float = 1e-4) -> float:
    """Return the threshold halfway between the mean of the values at or above it and the mean of those below it.

    Ridler and Calvard 1978. The iteration starts at the overall mean. A constant image gives its value.

    Args:
        values: any shape, not empty.
        tolerance: the iteration ends when the threshold changes by at most this much.
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


def select_strongest(values: Values, fraction: float) -> Mask:
    """Return a mask of the pixels with the highest values; of equal values the first in reading order.

    Args:
        values: any shape.
        fraction: of the pixels, 0 to 1; at least one pixel is selected.
    """
    flat = np.asarray(values).ravel()
    count = max(1, round(fraction * flat.size))
    selected = np.zeros(flat.size, bool)
    selected[np.argsort(-flat, kind="stable")[:count]] = True
    return selected.reshape(np.shape(values))


def touches_border_too_much(mask: Mask, fraction: float = 1 / 3) -> bool:
    """Return whether more than a fraction of one border row or border column is set.

    Failed generated masks are frames and half planes, and both show at the border. AnomalyDiffusion's public code uses
    one third.

    Args:
        mask: bool [H, W].
        fraction: of the pixels of a row or column.
    """
    mask = np.asarray(mask, bool)
    return any(bool(line.mean() > fraction) for line in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
