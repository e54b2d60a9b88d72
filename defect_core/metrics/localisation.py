"""How well a score map finds defects: pixel and image level, exact and threshold-free where the score is.

A *score map* is a float array, higher where the model sees a defect; a *mask* is a bool array of the same shape.
Every curve uses all distinct score values as thresholds (no grid of 21 or 100 thresholds).

Rule for degenerate input: a score that is not defined is `None` and `LocalisationScores.reasons` says why.
AUROC needs a positive and a negative; AP, F1-max and IoU need a positive; PRO needs a defect region and a
background pixel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

NO_POSITIVES = "no positives: every label is normal"
NO_NEGATIVES = "no negatives: every label is defective"
_EIGHT = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class Curve:
    """Cumulated counts at every distinct score, from the highest score to the lowest.

    At `threshold[i]` all items with score >= threshold are called defective: `true_positive[i]` of `positives`
    rightly and `false_positive[i]` of `negatives` wrongly.
    """

    threshold: NDArray[np.floating]
    true_positive: NDArray[np.int64]
    false_positive: NDArray[np.int64]
    positives: int
    negatives: int


def ranking_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Sort once; every ranking score below reads the result.

    Args:
        scores: finite floats, any shape.
        labels: bool, the same shape.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    score, label = np.asarray(scores).ravel(), np.asarray(labels).ravel().astype(bool)
    if score.shape != label.shape:
        raise ValueError(f"scores have {score.size} items, labels {label.size}; expected the same shape")
    if not np.isfinite(score).all():
        raise ValueError("scores: found NaN or infinity; expected finite numbers")
    order = np.argsort(score)[::-1]
    score, label = score[order], label[order]
    true_positive = np.cumsum(label, dtype=np.int64)
    # ties share one threshold: keep the last item of each run of equal scores
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if score.size else np.empty(0, int)
    true_positive = true_positive[last]
    positives = int(label.sum())
    return Curve(score[last], true_positive, last + 1 - true_positive, positives, label.size - positives)


def auroc(curve: Curve) -> float | None:
    """Area under the receiver operating characteristic by trapezoids; 1 is perfect, 0.5 chance.

    >>> auroc(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]))
    0.75
    """
    if not curve.positives or not curve.negatives:
        return None
    rate_tp = np.concatenate([[0.0], curve.true_positive / curve.positives])
    rate_fp = np.concatenate([[0.0], curve.false_positive / curve.negatives])
    return float(np.trapezoid(rate_tp, rate_fp))


def average_precision(curve: Curve) -> float | None:
    """AP = sum over thresholds of (recall_n - recall_(n-1)) * precision_n, without interpolation.

    >>> round(average_precision(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])), 4)
    0.8333
    """
    if not curve.positives:
        return None
    precision = curve.true_positive / (curve.true_positive + curve.false_positive)
    gained = np.diff(curve.true_positive, prepend=0)
    return float(np.sum(gained * precision) / curve.positives)


def f1_max(curve: Curve) -> tuple[float, float] | None:
    """The best F1 over all thresholds, and the (highest) threshold that gives it.

    >>> f1_max(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]))
    (0.8, 0.35)
    """
    if not curve.positives:
        return None
    f1 = 2 * curve.true_positive / (curve.true_positive + curve.false_positive + curve.positives)
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.threshold[best])


def per_region_overlap(
    score_maps: Sequence[ArrayLike], masks: Sequence[ArrayLike], fpr_limit: float = 0.3
) -> float | None:
    """PRO: mean recall of the 8-connected defect regions, integrated over the false positive rate.

    The curve runs over every distinct score; it is integrated by trapezoids from FPR 0 to `fpr_limit` (the last
    piece interpolated) and divided by `fpr_limit`, so 1 is perfect. A region of one pixel counts as much as a
    large one. Source: Bergmann et al., "The MVTec 3D-AD dataset"/"Uninformed Students" (limit 0.3).

    Returns:
        the score, or None when no region or no background pixel exists.

    >>> per_region_overlap([np.array([[0.9, 0.1], [0.1, 0.1]])], [np.array([[True, False], [False, False]])])
    1.0
    """
    weights, scores, negative = [], [], []
    regions = 0
    for score_map, mask in zip(score_maps, masks, strict=True):
        mask = np.asarray(mask, dtype=bool)
        labelled, count = ndimage.label(mask, structure=_EIGHT)
        area = np.bincount(labelled.ravel(), minlength=count + 1).astype(float)
        area[0] = np.inf  # background pixels add nothing to any region's recall
        weights.append((1.0 / area)[labelled].ravel())
        scores.append(np.asarray(score_map, dtype=np.float32).ravel())
        negative.append(~mask.ravel())
        regions += count
    if not regions:
        return None
    score, weight, normal = np.concatenate(scores), np.concatenate(weights), np.concatenate(negative)
    if not normal.any():
        return None
    order = np.argsort(score)[::-1]
    score = score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    overlap = np.cumsum(weight[order])[last] / regions
    rate_fp = np.cumsum(normal[order])[last] / normal.sum()
    overlap, rate_fp = np.concatenate([[0.0], overlap]), np.concatenate([[0.0], rate_fp])
    # cut the curve at the limit; with several thresholds at exactly the limit the highest overlap closes it
    inside = rate_fp <= fpr_limit
    end = np.interp(fpr_limit, rate_fp, overlap)
    x, y = np.append(rate_fp[inside], fpr_limit), np.append(overlap[inside], max(end, overlap[inside][-1]))
    return float(min(np.trapezoid(y, x) / fpr_limit, 1.0))


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

    Source: DRAEM / AnomalyDiffusion evaluation, 21x21 at 256 px; scale the window with the image side.
    """
    score_map = np.asarray(score_map, dtype=np.float64)
    window = max(1, min(window, *score_map.shape))
    total = np.pad(score_map.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[window:, window:] - total[:-window, window:] - total[window:, :-window]
    return float((sums + total[:-window, :-window]).max() / window**2)


def pooling_window(image_size: int) -> int:
    """Side of the image-score window: 21 at 256 px, scaled to `image_size`, odd, at least 1.

    >>> pooling_window(256), pooling_window(128)
    (21, 11)
    """
    return max(1, 2 * round((image_size * 21 / 256 - 1) / 2) + 1)


@dataclass
class LocalisationScores:
    """Streaming form: `update` with image batches, `compute` all scores, `reset`.

    `compute` returns `pixel_auroc, pixel_ap, pixel_f1_max, pixel_f1_threshold, pro, iou, image_auroc, image_ap,
    image_f1_max` (each a float in 0..1 or None) and `reasons`, a dict from each name that is None to one line.

    Args:
        fpr_limit: upper bound of the PRO integral.
        iou_threshold: score above which a pixel counts as defective for `iou`.
        window: side of the image-score pooling square; None scales 21 at 256 px to the map's smaller side.

    >>> scores = LocalisationScores(window=1)
    >>> scores.update([np.array([[0.9, 0.1]]), np.array([[0.2, 0.1]])],
    ...               [np.array([[True, False]]), np.array([[False, False]])])
    >>> result = scores.compute()
    >>> result["pixel_ap"], result["image_auroc"], result["reasons"]
    (1.0, 1.0, {})
    """

    fpr_limit: float = 0.3
    iou_threshold: float = 0.5
    window: int | None = None
    _maps: list[NDArray[np.float32]] = field(default_factory=list, init=False, repr=False)
    _masks: list[NDArray[np.bool_]] = field(default_factory=list, init=False, repr=False)

    def update(self, score_maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> None:
        """Add images: score maps `HxW` float and masks `HxW` bool (all False for a good image)."""
        for score_map, mask in zip(score_maps, masks, strict=True):
            score_map, mask = np.asarray(score_map, np.float32), np.asarray(mask, bool)
            if score_map.shape != mask.shape or score_map.ndim != 2:
                raise ValueError(f"score map {score_map.shape} and mask {mask.shape}: expected one HxW shape")
            self._maps.append(score_map)
            self._masks.append(mask)

    def reset(self) -> None:
        """Forget all images."""
        self._maps, self._masks = [], []

    def compute(self) -> dict:
        """All scores over the images seen so far."""
        pixel = ranking_curve(_flat(self._maps, np.float32), _flat(self._masks, bool))
        image = ranking_curve(
            [image_score(m, self.window or pooling_window(min(m.shape))) for m in self._maps],
            [bool(mask.any()) for mask in self._masks],
        )
        pixel_f1, image_f1 = f1_max(pixel), f1_max(image)
        scores: dict = {
            "pixel_auroc": auroc(pixel),
            "pixel_ap": average_precision(pixel),
            "pixel_f1_max": pixel_f1[0] if pixel_f1 else None,
            "pixel_f1_threshold": pixel_f1[1] if pixel_f1 else None,
            "pro": per_region_overlap(self._maps, self._masks, self.fpr_limit),
            "iou": intersection_over_union(self._maps, self._masks, self.iou_threshold),
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


def _flat(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays]) if arrays else np.empty(0, dtype)


def _reason(curve: Curve) -> str:
    if not curve.positives and not curve.negatives:
        return "no images"
    return NO_POSITIVES if not curve.positives else NO_NEGATIVES
