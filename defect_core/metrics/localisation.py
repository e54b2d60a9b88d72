"""How well a score map finds defects, at pixel and at image level.

A *score map* is a finite float array `[H,W]`, higher where the model sees a defect; a *mask* is a bool array of the
same shape. Scores are compared in float32. Every curve uses all distinct score values as thresholds (no grid of 21 or
100 thresholds), so every value here is exact; `localisation_binned` has the same scores in bounded memory.

Rule for degenerate input: a score that is not defined is `None` and `LocalisationScores.reasons` says why.
AUROC and PRO need a positive and a negative; AP, F1-max and IoU need a positive.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from defect_core.metrics.curves import (
    Curve,
    auroc,
    average_precision,
    curve_of,
    f1_max,
    overlap_area,
    ranking_curve,
)

__all__ = [
    "Curve",
    "ImageLevel",
    "LocalisationScores",
    "auroc",
    "average_precision",
    "f1_max",
    "image_score",
    "intersection_over_union",
    "overlap_at_thresholds",
    "per_region_overlap",
    "pooling_window",
    "ranking_curve",
]

NO_POSITIVES = "no positives: every label is normal"
NO_NEGATIVES = "no negatives: every label is defective"
NO_IMAGES = "no images"
_CONNECTIVITY = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


def per_region_overlap(
    score_maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], fpr_limit: float = 0.3, connectivity: int = 8
) -> float | None:
    """PRO: mean recall of the defect regions, integrated over the false positive rate.

    The curve runs over every distinct score; it is integrated by trapezoids from FPR 0 to `fpr_limit` (the last
    piece interpolated) and divided by `fpr_limit`, so 1 is perfect. A region of one pixel counts as much as a
    large one. Source: Bergmann et al., "Uninformed Students", section 4 (limit 0.3).

    Args:
        connectivity: 8 or 4: whether pixels that touch at a corner are of one region.

    Returns:
        the score, or None when no region or no background pixel exists.

    >>> per_region_overlap([np.array([[0.9, 0.1], [0.1, 0.1]])], [np.array([[True, False], [False, False]])])
    1.0
    """
    positive, weight, negative = _split_all(score_maps, masks, connectivity)
    return overlap_area(curve_of(positive, np.sort(negative), weight), fpr_limit)


def overlap_at_thresholds(
    score_maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    thresholds: int = 200,
    fpr_limit: float = 0.3,
    connectivity: int = 8,
) -> float | None:
    """PRO as the public evaluation scripts compute it, for numbers that must be comparable with theirs.

    `thresholds` values in equal steps from the lowest score to just below the highest; a pixel is found above a
    threshold; points with an FPR below `fpr_limit` count; their FPR is divided by the greatest among them (so the
    curve ends at 1 though it may end well before the limit, and it does not begin at 0). AnomalyDiffusion's script
    has 100 steps, DRAEM's and RD4AD's 200. With a few points below the limit the value is far from the exact one.

    Returns:
        the score, or None when no region, no background pixel, or fewer than two points below the limit exist.
    """
    positive, weight, negative = _split_all(score_maps, masks, connectivity)
    if not len(positive) or not len(negative):
        return None
    negative = np.sort(negative)
    order = np.argsort(positive)
    low, high = min(positive.min(), negative[0]), max(positive.max(), negative[-1])
    steps = np.linspace(np.float64(low), np.float64(high), thresholds, endpoint=False).astype(np.float32)
    fpr = 1 - np.searchsorted(negative, steps, "right") / len(negative)
    left = np.concatenate([np.cumsum(weight[order][::-1])[::-1], [0.0]])  # weight of this positive and those above
    overlap = left[np.searchsorted(positive[order], steps, "right")] / weight.sum()
    inside = fpr < fpr_limit
    x, y = fpr[inside][::-1], overlap[inside][::-1]
    if len(x) < 2 or x[-1] == 0:
        return None
    return float(np.trapezoid(y, x / x[-1]))


def intersection_over_union(
    score_maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], threshold: float = 0.5
) -> float | None:
    """IoU of {score > threshold} with the masks, pixels of all images pooled; None without a defect pixel.

    >>> intersection_over_union([np.array([0.9, 0.6, 0.1])], [np.array([True, False, False])])
    0.5
    """
    both = either = positives = 0
    for score_map, mask in zip(score_maps, masks, strict=True):
        found, mask = np.asarray(score_map) > threshold, np.asarray(mask, dtype=bool)
        both += int((found & mask).sum())
        either += int((found | mask).sum())
        positives += int(mask.sum())
    return both / either if positives else None


def image_score(score_map: ArrayLike, window: int) -> float:
    """The greatest mean of the map over a `window` x `window` square inside the image (stride 1, no padding).

    Window 1 is the plain maximum (SeaS). Source: DRAEM / AnomalyDiffusion evaluation, 21x21 at 256 px; scale the
    window with the image side.
    """
    score_map = np.asarray(score_map, dtype=np.float64)
    window = max(1, min(window, *score_map.shape))
    if window == 1:
        return float(score_map.max())
    total = np.pad(score_map.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[window:, window:] - total[:-window, window:] - total[window:, :-window]
    return float((sums + total[:-window, :-window]).max() / window**2)


def pooling_window(image_size: int) -> int:
    """Side of the image-score window: 21 at 256 px, scaled to `image_size`, odd, at least 1.

    >>> pooling_window(256), pooling_window(128)
    (21, 11)
    """
    return max(1, 2 * round((image_size * 21 / 256 - 1) / 2) + 1)


class ImageLevel:
    """What both forms of the scores share: image scores, IoU counts, and the sheet of results.

    Subclasses say how pixels are kept (`_add`, `_clear`) and give `_pixel_curve`.

    Args:
        fpr_limit: upper bound of the PRO integral.
        iou_threshold: score above which a pixel counts as defective for `iou`.
        window: side of the image-score pooling square (1: the plain maximum); None scales 21 at 256 px to the
            map's smaller side.
        connectivity: of defect regions, 8 or 4.
    """

    def __init__(
        self,
        fpr_limit: float = 0.3,
        iou_threshold: float = 0.5,
        window: int | None = None,
        connectivity: int = 8,
    ) -> None:
        if connectivity not in _CONNECTIVITY:
            raise ValueError(f"connectivity: found {connectivity}; expected 4 or 8")
        self.fpr_limit, self.iou_threshold = fpr_limit, iou_threshold
        self.window, self.connectivity = window, connectivity
        self.reset()

    def update(self, score_maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> None:
        """Add images: score maps `[H,W]` float and masks `[H,W]` bool (all False for a good image).

        Raises:
            ValueError: shapes that differ, or a score that is not finite.
        """
        for score_map, mask in zip(score_maps, masks, strict=True):
            score_map, mask = np.asarray(score_map, np.float32), np.asarray(mask, bool)
            if score_map.shape != mask.shape or score_map.ndim != 2:
                raise ValueError(f"score map {score_map.shape} and mask {mask.shape}: expected one HxW shape")
            if not np.isfinite(score_map).all():
                raise ValueError("score map: found NaN or infinity; expected finite numbers")
            defective = bool(mask.any())
            self._labels.append(defective)
            self._scores.append(image_score(score_map, self.window or pooling_window(min(score_map.shape))))
            found = score_map > self.iou_threshold
            both = int(np.count_nonzero(found & mask)) if defective else 0
            self._both += both
            self._either += int(np.count_nonzero(found)) + int(np.count_nonzero(mask)) - both
            weight, regions = region_weights(mask, self.connectivity) if defective else (np.empty(0), 0)
            self._regions += regions
            self._add(score_map, mask, weight)

    def reset(self) -> None:
        """Forget all images."""
        self._scores: list[float] = []
        self._labels: list[bool] = []
        self._both = self._either = self._regions = 0
        self._clear()

    def compute(self) -> dict:
        """All scores over the images seen so far; updates may go on afterwards."""
        pixel, image = self._pixel_curve(), ranking_curve(self._scores, self._labels)
        pixel_f1, image_f1 = f1_max(pixel), f1_max(image)
        scores: dict = {
            "pixel_auroc": auroc(pixel),
            "pixel_ap": average_precision(pixel),
            "pixel_f1_max": pixel_f1[0] if pixel_f1 else None,
            "pixel_f1_threshold": pixel_f1[1] if pixel_f1 else None,
            "pro": overlap_area(pixel, self.fpr_limit),
            "iou": self._both / self._either if pixel.positives else None,
            "image_auroc": auroc(image),
            "image_ap": average_precision(image),
            "image_f1_max": image_f1[0] if image_f1 else None,
        }
        scores["reasons"] = {
            name: _reason(image if name.startswith("image") else pixel)
            for name, value in scores.items()
            if value is None
        }
        return scores

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_], weight: NDArray[np.float64]) -> None:
        raise NotImplementedError

    def _clear(self) -> None:
        raise NotImplementedError

    def _pixel_curve(self) -> Curve:
        raise NotImplementedError


class LocalisationScores(ImageLevel):
    """Exact form: `update` with batches of images, `compute` all scores, `reset`.

    `compute` returns `pixel_auroc, pixel_ap, pixel_f1_max, pixel_f1_threshold, pro, iou, image_auroc, image_ap,
    image_f1_max` (each a float in 0..1 or None) and `reasons`, a dict from each name that is None to one line.
    Four bytes are kept per normal pixel and twelve per defect pixel; no map and no mask.

    >>> scores = LocalisationScores(window=1)
    >>> scores.update([np.array([[0.9, 0.1]]), np.array([[0.2, 0.1]])],
    ...               [np.array([[True, False]]), np.array([[False, False]])])
    >>> result = scores.compute()
    >>> result["pixel_ap"], result["image_auroc"], result["reasons"]
    (1.0, 1.0, {})
    """

    def _clear(self) -> None:
        self._positive: list[NDArray[np.float32]] = []
        self._weight: list[NDArray[np.float64]] = []
        self._negative: list[NDArray[np.float32]] = []

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_], weight: NDArray[np.float64]) -> None:
        self._positive.append(score_map[mask])
        self._weight.append(weight)
        self._negative.append(score_map[~mask])

    def _pixel_curve(self) -> Curve:
        negative = _joined(self._negative)
        negative.sort()  # the parts are replaced by the sorted whole, so that memory is held once
        self._negative = [negative]
        return curve_of(_joined(self._positive), negative, _joined(self._weight))


def region_weights(mask: NDArray[np.bool_], connectivity: int = 8) -> tuple[NDArray[np.float64], int]:
    """For each defect pixel in reading order 1 / (area of its region), and the number of regions."""
    labelled, regions = ndimage.label(mask, structure=_CONNECTIVITY[connectivity])
    inside = labelled[mask]
    return 1.0 / np.bincount(inside, minlength=1)[inside], regions


def _split_all(
    score_maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], connectivity: int
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Scores of defect pixels, their weights, scores of normal pixels."""
    pixels = LocalisationScores(window=1, connectivity=connectivity)
    pixels.update(score_maps, masks)
    return _joined(pixels._positive), _joined(pixels._weight), _joined(pixels._negative)


def _joined(parts: list[NDArray]) -> NDArray:
    """The parts as one array; the list gives each up once it is copied, or two copies of everything would be held."""
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


def _reason(curve: Curve) -> str:
    if not curve.positives and not curve.negatives:
        return NO_IMAGES
    return NO_POSITIVES if not curve.positives else NO_NEGATIVES
