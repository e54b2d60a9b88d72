"""Pure functions that score defect localisation at pixel and at image level.

A score map is a finite float array `[H,W]`. A higher score means that the model sees a defect.
A mask is a bool array of the same shape. Scores are compared in float32.
Every distinct score is a threshold, so each result is exact. `binning` gives the same curve in constant memory.
The torchmetrics classes over these functions are in `localisation_metrics`.

Undefined scores are None. AUROC and PRO need a positive and a negative. AP, F1-max and IoU need a positive.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from defect_core.metrics.curves import (
    Curve,
    auroc,
    average_precision,
    curve_from_classes,
    f1_max,
    overlap_area,
    ranking_curve,
)

NO_POSITIVES = "no positives: every label is normal"
NO_NEGATIVES = "no negatives: every label is defective"
NO_IMAGES = "no images"
PRO_FPR_LIMIT = 0.3  # Bergmann et al. 2020, "Uninformed Students", section 4
WINDOW_AT_256 = 21  # DRAEM (Zavrtanik et al. 2021), public evaluation script
_CONNECTIVITY = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}

_STRIP_PIXELS = 2**23  # of a large score map that are pooled at once


def localisation_scores(
    score_maps: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    fpr_limit: float = PRO_FPR_LIMIT,
    iou_threshold: float = 0.5,
    window: int | None = None,
    connectivity: int = 8,
) -> dict[str, Any]:
    """Returns all localisation scores of a set of images.

    Args:
        score_maps: float `[H,W]` each.
        masks: bool `[H,W]` each. All False for a normal image.
        fpr_limit: upper bound of the false positive rate in PRO.
        iou_threshold: pixels with a higher score are predicted defective for `iou`.
        window: side of the pooling window of the image score in pixels. See `image_score`.
        connectivity: 8 or 4, of the pixels of a defect region.

    Returns:
        `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_f1_threshold`, `pro`, `iou`, `image_auroc`, `image_ap` and
        `image_f1_max`, each a float or None, and `reasons`, a dict from each None to its reason.

    Raises:
        ValueError: shapes that differ, a score that is not finite, or an unknown connectivity.

    >>> maps = [np.array([[0.9, 0.1]]), np.array([[0.2, 0.1]])]
    >>> scores = localisation_scores(maps, [np.array([[True, False]]), np.array([[False, False]])], window=1)
    >>> scores["pixel_ap"], scores["image_auroc"], scores["reasons"]
    (1.0, 1.0, {})
    """
    pixels = _collect_pixels(score_maps, masks, connectivity, window, iou_threshold)
    images = pixels.images
    return scores_from_curves(
        pixels.curve(),
        ranking_curve([image.score for image in images], [image.is_defective for image in images]),
        sum(image.intersection for image in images),
        sum(image.union for image in images),
        fpr_limit,
    )


def scores_from_curves(
    pixel: Curve, image: Curve, intersection: int, union: int, fpr_limit: float = PRO_FPR_LIMIT
) -> dict[str, Any]:
    """Returns the scores of `localisation_scores` from its two curves.

    Args:
        pixel: curve of all pixels, with the recall of the regions.
        image: curve of the image scores.
        intersection: number of defective pixels that are predicted defective.
        union: number of pixels that are defective or predicted defective.
        fpr_limit: upper bound of the false positive rate in PRO.
    """
    pixel_f1, image_f1 = f1_max(pixel), f1_max(image)
    scores: dict[str, Any] = {
        "pixel_auroc": auroc(pixel),
        "pixel_ap": average_precision(pixel),
        "pixel_f1_max": pixel_f1[0] if pixel_f1 else None,
        "pixel_f1_threshold": pixel_f1[1] if pixel_f1 else None,
        "pro": overlap_area(pixel, fpr_limit),
        "iou": intersection / union if pixel.positives else None,
        "image_auroc": auroc(image),
        "image_ap": average_precision(image),
        "image_f1_max": image_f1[0] if image_f1 else None,
    }
    scores["reasons"] = {
        name: _reason(image if name.startswith("image") else pixel) for name, value in scores.items() if value is None
    }
    return scores


def per_region_overlap(
    score_maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    fpr_limit: float = PRO_FPR_LIMIT,
    connectivity: int = 8,
) -> float | None:
    """Returns PRO (AUPRO): the mean recall of the defect regions, integrated over the false positive rate.

    The formula is in `curves.overlap_area`. A region of one pixel counts as much as a large one.
    Source: Bergmann et al. 2020, "Uninformed Students", section 4.

    Args:
        score_maps: float `[H,W]` each.
        masks: bool `[H,W]` each.
        fpr_limit: upper bound of the false positive rate.
        connectivity: 8 or 4, of the pixels of a region.

    Returns:
        A float in 0..1, or None without a region or without a normal pixel.

    >>> per_region_overlap([np.array([[0.9, 0.1], [0.1, 0.1]])], [np.array([[True, False], [False, False]])])
    1.0
    """
    return overlap_area(_collect_pixels(score_maps, masks, connectivity).curve(), fpr_limit)


def overlap_at_thresholds(
    score_maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    thresholds: int = 200,
    fpr_limit: float = PRO_FPR_LIMIT,
    connectivity: int = 8,
) -> float | None:
    """Returns PRO as the public evaluation scripts approximate it. Use it only to compare with their numbers.

    The thresholds are equally spaced from the lowest score to just below the highest. Only points with an FPR below
    `fpr_limit` count, and their FPR is divided by the highest of them. The curve therefore ends at 1 even if it ends
    far below the limit, and it does not begin at 0. With few points the value is far from the exact one.
    AnomalyDiffusion's script has 100 thresholds, DRAEM's and RD4AD's have 200.

    Args:
        score_maps: float `[H,W]` each.
        masks: bool `[H,W]` each.
        thresholds: number of thresholds.
        fpr_limit: upper bound of the false positive rate.
        connectivity: 8 or 4, of the pixels of a region.

    Returns:
        The score, or None without a region, without a normal pixel, or with fewer than two points below the limit.
    """
    pixels = _collect_pixels(score_maps, masks, connectivity)
    positive, weight = concatenate_parts(pixels.positive), 1.0 / concatenate_parts(pixels.area).astype(np.float64)
    negative = np.sort(concatenate_parts(pixels.negative))
    if not len(positive) or not len(negative):
        return None
    order = np.argsort(positive)
    low, high = min(positive.min(), negative[0]), max(positive.max(), negative[-1])
    steps = np.linspace(np.float64(low), np.float64(high), thresholds, endpoint=False).astype(np.float32)
    fpr = 1 - np.searchsorted(negative, steps, "right") / len(negative)
    cumulative = np.concatenate([np.cumsum(weight[order][::-1])[::-1], [0.0]])  # of this positive and those above it
    overlap = cumulative[np.searchsorted(positive[order], steps, "right")] / weight.sum()
    inside = fpr < fpr_limit
    x, y = fpr[inside][::-1], overlap[inside][::-1]
    if len(x) < 2 or x[-1] == 0:
        return None
    return float(np.trapezoid(y, x / x[-1]))


def intersection_over_union(
    score_maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], threshold: float = 0.5
) -> float | None:
    """Returns the IoU of {score > threshold} and the masks over the pixels of all images.

    Args:
        score_maps: float `[H,W]` each.
        masks: bool `[H,W]` each.
        threshold: pixels with a higher score are predicted defective.

    Returns:
        A float in 0..1, or None without a defective pixel.

    >>> intersection_over_union([np.array([[0.9, 0.6, 0.1]])], [np.array([[True, False, False]])])
    0.5
    """
    pixels = _collect_pixels(score_maps, masks, iou_threshold=threshold)
    union = sum(image.union for image in pixels.images)
    is_defined = any(image.is_defective for image in pixels.images)
    return sum(image.intersection for image in pixels.images) / union if is_defined else None


def image_score(score_map: ArrayLike, window: int) -> float:
    """Returns the highest mean of the map over a `window` x `window` square inside the image (stride 1, no padding).

    Source: the public evaluation scripts of DRAEM and AnomalyDiffusion, 21 x 21 at 256 px.

    Args:
        score_map: float `[H,W]`.
        window: side in pixels. 1 gives the maximum, as in SeaS.
    """
    score_map = np.asarray(score_map)
    if max(1, min(window, *score_map.shape)) == 1:
        return float(score_map.max())
    return max(float(means.max()) for _, means in iterate_window_means(score_map, window))


def iterate_window_means(score_map: NDArray[Any], window: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yields the means over all windows inside the map, in strips whose memory does not grow with the map.

    Args:
        score_map: float `[H,W]`.
        window: side of a window in pixels; at most the shorter side of the map is used.

    Yields:
        The first row of a strip, and the means `[R,W-window+1]` of the windows that begin at its rows.
    """
    window = max(1, min(window, *score_map.shape))
    height, width = score_map.shape
    rows = max(window, _STRIP_PIXELS // width)
    # A map that is barely higher than one strip is one strip.
    rows = height if height <= rows + window else rows
    for top in range(0, height - window + 1, rows):
        strip = score_map[top : top + rows + window - 1].astype(np.float64)
        total = np.pad(strip.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = total[window:, window:] - total[:-window, window:] - total[window:, :-window]
        yield top, (sums + total[:-window, :-window]) / window**2


def pooling_window(image_size: int) -> int:
    """Returns the side of the image-score window: 21 at 256 px, scaled to `image_size`, odd, at least 1.

    >>> pooling_window(256), pooling_window(128)
    (21, 11)
    """
    return max(1, 2 * round((image_size * WINDOW_AT_256 / 256 - 1) / 2) + 1)


class ImageCounts(NamedTuple):
    """Contribution of one image to the scores.

    Attributes:
        score: image score, see `image_score`.
        is_defective: whether the mask has a defective pixel.
        intersection: number of defective pixels that are predicted defective.
        union: number of pixels that are defective or predicted defective.
        area: float32, area of its region in pixels for each defective pixel in reading order.
        regions: number of defect regions.
    """

    score: float
    is_defective: bool
    intersection: int
    union: int
    area: NDArray[np.float32]
    regions: int


def count_image(
    score_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    window: int | None = None,
    iou_threshold: float = 0.5,
    connectivity: int = 8,
) -> ImageCounts:
    """Returns the contribution of one image to the scores. The arguments are those of `localisation_scores`.

    Raises:
        ValueError: shapes that differ, a score that is not finite, or an unknown connectivity.
    """
    if score_map.shape != mask.shape or score_map.ndim != 2:
        raise ValueError(f"score map {score_map.shape} and mask {mask.shape}: expected one HxW shape")
    if not np.isfinite(score_map).all():
        raise ValueError("score map: found NaN or infinity; expected finite numbers")
    if connectivity not in _CONNECTIVITY:
        raise ValueError(f"connectivity: found {connectivity}; expected 4 or 8")
    is_defective = bool(mask.any())
    predicted = score_map > iou_threshold
    intersection = int(np.count_nonzero(predicted & mask)) if is_defective else 0
    union = int(np.count_nonzero(predicted)) + int(np.count_nonzero(mask)) - intersection
    area, regions = _region_areas(mask, connectivity) if is_defective else (np.empty(0, np.float32), 0)
    score = image_score(score_map, window or pooling_window(min(score_map.shape)))
    return ImageCounts(score, is_defective, intersection, union, area, regions)


def concatenate_parts(parts: list[NDArray]) -> NDArray:
    """Returns the parts as one array and replaces them in the list by it.

    Each part is released once it is copied, so that the memory holds the data once.
    """
    if len(parts) == 1:
        return parts[0]
    whole = np.empty(sum(len(part) for part in parts), parts[0].dtype if parts else np.float32)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    parts.append(whole)
    return whole


class _PixelScores:
    """Scores of defective pixels, the areas of their regions, scores of normal pixels, and counts per image."""

    def __init__(self) -> None:
        self.positive: list[NDArray[np.float32]] = []
        self.area: list[NDArray[np.float32]] = []
        self.negative: list[NDArray[np.float32]] = []
        self.images: list[ImageCounts] = []

    def add(
        self, score_map: ArrayLike, mask: ArrayLike, window: int | None, iou_threshold: float, connectivity: int
    ) -> None:
        score_map, mask = np.asarray(score_map, np.float32), np.asarray(mask, bool)
        counts = count_image(score_map, mask, window, iou_threshold, connectivity)
        self.positive.append(score_map[mask])
        self.area.append(counts.area)
        self.negative.append(score_map[~mask])
        self.images.append(counts._replace(area=np.empty(0, np.float32)))

    def curve(self) -> Curve:
        weight = 1.0 / concatenate_parts(self.area).astype(np.float64)
        negative = concatenate_parts(self.negative)
        negative.sort()
        return curve_from_classes(concatenate_parts(self.positive), negative, weight)


def _collect_pixels(
    score_maps: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    connectivity: int = 8,
    window: int | None = 1,
    iou_threshold: float = 0.5,
) -> _PixelScores:
    pixels = _PixelScores()
    for score_map, mask in zip(score_maps, masks, strict=True):
        pixels.add(score_map, mask, window, iou_threshold, connectivity)
    return pixels


def _region_areas(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.float32], int]:
    """Area of its region for each defective pixel, exact in float32 up to 16 million pixels, and number of regions."""
    labelled = np.zeros(mask.shape, np.int32)
    regions = ndimage.label(mask, structure=_CONNECTIVITY[connectivity], output=labelled)
    inside = labelled[mask]
    return np.bincount(inside, minlength=1)[inside].astype(np.float32), cast(int, regions)


def _reason(curve: Curve) -> str:
    if not curve.positives and not curve.negatives:
        return NO_IMAGES
    return NO_POSITIVES if not curve.positives else NO_NEGATIVES
