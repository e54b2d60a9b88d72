"""From the requested mask to the mask of what was really drawn: m* ⊆ m, never empty when m is not."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.generators.base import Mask

LEAST_CHANGE = 6.0
RELATIVE_CHANGE = 0.35
SMALLEST_PART = 3


def refine_by_difference(
    drawn: NDArray[np.floating], rebuilt: NDArray[np.floating], allowed: Mask
) -> tuple[Mask, NDArray[np.float32]]:
    """Where the drawn canvas differs from its own reconstruction without a defect.

    Both went through the same decoder, so what differs is the defect alone, at pixel precision. The threshold is a
    share of the strongest change (its 98th percentile inside `allowed`), and at least a few grey levels. Ours, not
    the paper's, whose attention maps are too coarse at 16 x 16.

    Args:
        drawn, rebuilt: [H, W, 3] in 0 to 255.
        allowed: bool [H, W], the region that was drawn.

    Returns:
        The refined mask, and the change over its threshold scale as a soft mask in [0, 1].
    """
    change = ndimage.gaussian_filter(np.abs(drawn - rebuilt).mean(-1), 0.8) * allowed
    if not allowed.any():
        return allowed.copy(), change.astype(np.float32)
    peak = float(np.percentile(change[allowed], 98))
    mask = change >= max(LEAST_CHANGE, RELATIVE_CHANGE * peak)
    mask = ndimage.binary_closing(np.pad(mask, 2), iterations=1)[2:-2, 2:-2] & allowed
    mask = _drop_small(ndimage.binary_fill_holes(mask) & allowed)
    return mask, np.clip(change / max(peak, 1e-6), 0, 1).astype(np.float32)


def refine_by_attention(attention: NDArray[np.floating], allowed: Mask) -> tuple[Mask, NDArray[np.float32]]:
    """Where the defect's words were attended to: paper §3.4, m* = [resize(m'⊙softmax(QK_def/τ)) ≥ ½].

    A raw softmax value rarely reaches ½, so the averaged map is min-max normalised inside the mask first
    (brief §6.3 step 5).

    Args:
        attention: [h, w], averaged over steps, layers, heads and the defect's tokens.
        allowed: bool [H, W], m at the window's size.
    """
    height, width = allowed.shape
    rows = np.clip((np.arange(height) + 0.5) * attention.shape[0] / height - 0.5, 0, attention.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * attention.shape[1] / width - 0.5, 0, attention.shape[1] - 1)
    fine = ndimage.map_coordinates(attention.astype(np.float64), np.meshgrid(rows, columns, indexing="ij"), order=1)
    if not allowed.any():
        return allowed.copy(), np.zeros(allowed.shape, np.float32)
    low, high = fine[allowed].min(), fine[allowed].max()
    soft = np.where(allowed, (fine - low) / max(high - low, 1e-12), 0).astype(np.float32)
    mask = (soft >= 0.5) & allowed
    return (mask if mask.any() else allowed.copy()), soft


def _drop_small(mask: Mask) -> Mask:
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count <= 1:
        return mask
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return np.isin(parts, np.flatnonzero(areas >= max(SMALLEST_PART, 0.1 * areas.max())))
