"""What an inspector decides by: escapes, overkill, and the defect regions that are found at a threshold.

An image is rejected if its score (see `localisation.image_score`) is above the threshold. An *escape* is a defective
image that is not rejected, *overkill* a normal image that is rejected. The torchmetrics classes over these functions
are in `inspection_metrics`; thresholds come from `operating_point`.

Hit rule: a predicted pixel has a score above the threshold and is in a pooling window whose mean is above it. So an
image has a predicted pixel exactly if it is rejected. A defect region is found if a predicted pixel is inside it. A
predicted region without a defect pixel is a false region. Regions are 8-connected.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from defect_core.data.masks import label_components
from defect_core.metrics.localisation import iterate_window_means

HIT_RULE = (
    "a predicted pixel has a score above the threshold, in a window whose mean is above it; a defect region is found "
    "if it has a predicted pixel; a predicted region without a defect pixel is false"
)
CONTRAST_RING = 5
"""Width in pixels of the ring around a defect region with which its contrast is computed."""


def wilson_interval(count: float, total: int, level: float = 0.95) -> list[float] | None:
    """Return the Wilson interval [low, high] of a rate `count / total`; None if `total` is 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference". It is inside 0 to 1
    and not empty at rates of 0 and 1.

    Args:
        count: number of events, 0 to `total`; a mean over seeds may have a fraction.
        total: number of images or regions.
        level: coverage of the interval.

    Raises:
        ValueError: a count outside 0 to `total`.

    >>> wilson_interval(0, 20)
    [0.0, 0.161125]
    >>> wilson_interval(10, 20)
    [0.299298, 0.700702]
    """
    if not 0 <= count <= total:
        raise ValueError(f"count: found {count}; expected 0 to {total}")
    if not total:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, spread = count / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    width = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return [round(max(0.0, centre - width), 6), round(min(1.0, centre + width), 6)]


def predict_pixels(score_map: ArrayLike, threshold: float, window: int) -> NDArray[np.bool_]:
    """Return the predicted pixels bool `[H,W]` of a score map (see the hit rule of this module).

    Args:
        score_map: float `[H,W]`.
        threshold: of the image score.
        window: side in pixels of the pooling window of the image score; 1 for none.
    """
    score_map = np.asarray(score_map, np.float32)
    above = score_map > threshold
    if window <= 1 or not above.any():
        return above
    covered = np.zeros(score_map.shape, bool)
    for top, means in iterate_window_means(score_map, window):
        side = min(window, *score_map.shape)
        rejected = np.pad(means > threshold, ((0, side - 1), (0, side - 1)))
        # The window with its first pixel at p covers p to p + side - 1, so a pixel looks back over side - 1 pixels.
        for axis in (0, 1):
            rejected = ndimage.maximum_filter1d(rejected, side, axis, mode="constant", origin=(side - 1) // 2)
        covered[top : top + len(rejected)] |= rejected
    return above & covered


class RegionOutcomes(NamedTuple):
    """Defect regions of one image, in reading order, and what a threshold makes of them.

    Attributes:
        area: pixels of each region, int64 `[R]`.
        contrast: see `region_contrast`, float64 `[R]`; NaN without an image.
        is_found: whether each region is found, bool `[R]`.
        false_regions: number of predicted regions without a defect pixel.
    """

    area: NDArray[np.int64]
    contrast: NDArray[np.float64]
    is_found: NDArray[np.bool_]
    false_regions: int


def match_regions(
    score_map: ArrayLike,
    mask: ArrayLike,
    threshold: float,
    window: int,
    image: ArrayLike | None = None,
    connectivity: int = 8,
) -> RegionOutcomes:
    """Return which defect regions of an image are found, and the number of false regions.

    Args:
        score_map: float `[H,W]`.
        mask: bool `[H,W]`; all False for a normal image.
        threshold: of the image score.
        window: side in pixels of the pooling window of the image score.
        image: `[H,W,3]` in 0..255, for the contrast; None: no contrast.
        connectivity: 8 or 4, of the pixels of a region.

    Raises:
        ValueError: shapes that differ.
    """
    mask = np.asarray(mask, bool)
    if np.shape(score_map) != mask.shape or mask.ndim != 2:
        raise ValueError(f"score map {np.shape(score_map)} and mask {mask.shape}: expected one HxW shape")
    predicted = predict_pixels(score_map, threshold, window)
    regions, count = label_components(mask, connectivity)
    area = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(regions[predicted], minlength=count + 1)[1:]
    parts, predictions = label_components(predicted, connectivity)
    touching = np.unique(parts[mask & predicted])
    contrast = np.full(count, np.nan) if image is None else region_contrast(image, regions, count)
    return RegionOutcomes(area, contrast, hits > 0, predictions - len(touching))


def region_contrast(image: ArrayLike, regions: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Return the contrast of each region in grey levels, float64 `[count]`; NaN without a pixel around it.

    It is the root mean square over the colour channels of the difference between the mean inside the region and the
    mean of the ring of `CONTRAST_RING` pixels around it, without the pixels of other regions. A region that differs in
    texture only has a contrast near 0.

    Args:
        image: `[H,W,3]` in 0..255.
        regions: labels `[H,W]`, 0 outside all regions.
        count: number of regions.
    """
    values = np.asarray(image)
    if values.shape[:2] != regions.shape:
        raise ValueError(f"image {values.shape} and regions {regions.shape}: expected the same height and width")
    result = np.full(count, np.nan)
    for number, box in enumerate(ndimage.find_objects(regions, count)):
        if box is None:
            continue
        grown = tuple(slice(max(0, s.start - CONTRAST_RING), s.stop + CONTRAST_RING) for s in box)
        labels, pixels = regions[grown], values[grown].astype(np.float64)
        inside = labels == number + 1
        ring = ndimage.maximum_filter(inside, 2 * CONTRAST_RING + 1, mode="constant") & (labels == 0)
        if ring.any():
            difference = pixels[inside].mean(0) - pixels[ring].mean(0)
            result[number] = float(np.sqrt(np.mean(difference**2)))
    return result


def tercile_edges(values: ArrayLike) -> list[float] | None:
    """Return the two edges that divide values into thirds; None with fewer than three finite values.

    >>> tercile_edges([1, 2, 3, 4])
    [2.0, 3.0]
    """
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    return None if len(finite) < 3 else [float(edge) for edge in np.quantile(finite, [1 / 3, 2 / 3])]


def bin_of(values: ArrayLike, edges: Sequence[float]) -> NDArray[np.int64]:
    """Return the bin of each value: the number of edges below it; -1 for NaN.

    >>> bin_of([1, 2, 2.5, 9], [2.0, 3.0]).tolist()
    [0, 0, 1, 2]
    """
    array = np.asarray(values, np.float64)
    return np.where(np.isnan(array), -1, np.searchsorted(np.asarray(edges, np.float64), array, "left"))
