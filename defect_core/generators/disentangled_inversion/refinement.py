"""Refinement of the requested mask m to the mask m* of the generated defect (section 3.3.2); m* is a part of m."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.data.masks import label_components
from defect_core.generators.base import Mask

ATTENTION_THRESHOLD = 0.5  # eq. 13
# The thresholds of `refine_by_difference` are not in the paper; they were chosen by experiment.
BLUR_SIGMA = 0.8  # pixels
PEAK_PERCENTILE = 98
MIN_CHANGE = 6.0  # grey levels
MIN_RELATIVE_CHANGE = 0.35  # of the peak
MIN_AREA = 3  # pixels of a connected component
MIN_RELATIVE_AREA = 0.1  # of the largest connected component


def refine_by_difference(
    generated: NDArray[np.floating], reconstructed: NDArray[np.floating], allowed: Mask
) -> tuple[Mask, NDArray[np.float32]]:
    """Return the pixels where the generated canvas differs from the reconstructed normal canvas (not in the paper).

    Both are outputs of the same decoder, so they differ by the defect only. The attention maps of eq. 13 are coarser.

    Args:
        generated: [H, W, 3] in 0 to 255.
        reconstructed: [H, W, 3] in 0 to 255.
        allowed: bool [H, W], the region that was generated.

    Returns:
        The refined mask, which is empty if nothing changed, and the change relative to its peak, float32 in [0, 1].
    """
    change = ndimage.gaussian_filter(np.abs(generated - reconstructed).mean(-1), BLUR_SIGMA) * allowed
    if not allowed.any():
        return allowed.copy(), change.astype(np.float32)
    peak = float(np.percentile(change[allowed], PEAK_PERCENTILE))
    mask = change >= max(MIN_CHANGE, MIN_RELATIVE_CHANGE * peak)
    mask = np.asarray(ndimage.binary_closing(np.pad(mask, 2), iterations=1), bool)[2:-2, 2:-2] & allowed
    mask = _remove_small_components(np.asarray(ndimage.binary_fill_holes(mask), bool) & allowed)
    return mask, np.clip(change / max(peak, 1e-6), 0, 1).astype(np.float32)


def refine_by_attention(attention: NDArray[np.floating], allowed: Mask) -> tuple[Mask, NDArray[np.float32]]:
    """Return the pixels with attention to the defect tokens, m* = [resize(m'⊙softmax(QK_def/τ)) ≥ ½] (eq. 13).

    The softmax rarely reaches ½, so the map is scaled to [0, 1] inside the mask first (not in the paper).

    Args:
        attention: [h, w], mean over steps, layers, heads and the defect tokens.
        allowed: bool [H, W], m at the size of the window.

    Returns:
        The refined mask, nonempty if `allowed` is, and the scaled attention, float32 [H, W] in [0, 1].
    """
    height, width = allowed.shape
    rows = np.clip((np.arange(height) + 0.5) * attention.shape[0] / height - 0.5, 0, attention.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * attention.shape[1] / width - 0.5, 0, attention.shape[1] - 1)
    resized = ndimage.map_coordinates(attention.astype(np.float64), np.meshgrid(rows, columns, indexing="ij"), order=1)
    if not allowed.any():
        return allowed.copy(), np.zeros(allowed.shape, np.float32)
    low, high = resized[allowed].min(), resized[allowed].max()
    soft = np.where(allowed, (resized - low) / max(high - low, 1e-12), 0).astype(np.float32)
    mask = (soft >= ATTENTION_THRESHOLD) & allowed
    return (mask if mask.any() else allowed.copy()), soft


def _remove_small_components(mask: Mask) -> Mask:
    labels, count = label_components(mask)
    if count <= 1:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return np.isin(labels, np.flatnonzero(areas >= max(MIN_AREA, MIN_RELATIVE_AREA * areas.max())))
