"""Exact AUROC, average precision, F1-max and bounded overlap area from one curve over the thresholds.

A curve has points at the distinct scores of *positives* only. Between two of them only negatives pass the threshold,
and the areas under that part have a closed form. Defect maps have few positives, and negatives are sorted without an
index, so this is many times faster than sorting all items with their labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Curve:
    """Cumulative counts `[T]` at falling thresholds. An item is predicted defective if its score >= the threshold.

    Attributes:
        threshold: distinct scores of positives, from the highest to the lowest. Other scores may be among them.
        true_positive: number of positives at or above each threshold.
        false_positive: number of negatives at or above each threshold.
        false_positive_above: number of negatives strictly above each threshold. The others are tied with positives.
        overlap: mean recall of the defect regions, 0..1. Without regions it is the recall of the positives.
        positives: number of positives.
        negatives: number of negatives.
    """

    threshold: NDArray[np.floating]
    true_positive: NDArray[np.integer] | NDArray[np.floating]
    false_positive: NDArray[np.integer] | NDArray[np.floating]
    false_positive_above: NDArray[np.integer] | NDArray[np.floating]
    overlap: NDArray[np.floating]
    positives: int
    negatives: int

    @property
    def tied_fraction(self) -> float:
        """Fraction of (positive, negative) pairs that share a score, 0..1. AUROC counts each such pair as 1/2.

        Half of it bounds the error that binning of the scores causes in AUROC.
        """
        pairs = np.diff(self.true_positive, prepend=0) * (self.false_positive - self.false_positive_above)
        return float(pairs.sum() / max(1, self.positives * self.negatives))


def ranking_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Returns the curve of scores and labels.

    Args:
        scores: finite floats, any shape.
        labels: bool, the same shape. True is positive.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    score, label = np.asarray(scores).ravel(), np.asarray(labels).ravel().astype(bool)
    if score.shape != label.shape:
        raise ValueError(f"scores have {score.size} items, labels {label.size}; expected the same shape")
    if not np.isfinite(score).all():
        raise ValueError("scores: found NaN or infinity; expected finite numbers")
    return curve_from_classes(score[label], np.sort(score[~label]))


def curve_from_classes(
    positive: NDArray[np.floating], negative: NDArray[np.floating], weight: NDArray[np.floating] | None = None
) -> Curve:
    """Returns the curve of the scores of both classes.

    Args:
        positive: scores of positives `[P]`, in any order.
        negative: scores of negatives `[N]`, ascending.
        weight: `[P]`, contribution of each positive to `overlap`, which is normalised to end at 1. None is uniform.
    """
    count, order = len(positive), np.argsort(positive)
    ranked = positive[order]
    # Equal scores share one threshold: the first of each run in ascending order.
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if count else np.empty(0, np.int64)
    threshold = ranked[first]
    true_positive = count - first
    if weight is None:
        overlap = true_positive / max(1, count)
    else:
        cumulative = np.cumsum(weight[order][::-1], dtype=np.float64)
        overlap = cumulative[true_positive - 1] / cumulative[-1] if count else np.empty(0)
    at_least = len(negative) - np.searchsorted(negative, threshold, "left")
    above = len(negative) - np.searchsorted(negative, threshold, "right")
    return Curve(
        threshold=threshold[::-1],
        true_positive=true_positive[::-1],
        false_positive=at_least[::-1],
        false_positive_above=above[::-1],
        overlap=overlap[::-1],
        positives=count,
        negatives=len(negative),
    )


def curve_from_counts(
    positive: NDArray[np.floating], negative: NDArray[np.floating], overlap: NDArray[np.floating] | None = None
) -> Curve:
    """Returns the curve of counts in bins of falling score.

    Args:
        positive: number of positives in each bin `[T]`.
        negative: number of negatives in each bin `[T]`.
        overlap: contribution of each bin to the mean recall of the regions `[T]`. None is the recall of the positives.
    """
    true_positive, false_positive = np.cumsum(positive), np.cumsum(negative)
    return Curve(
        threshold=-np.arange(len(positive), dtype=np.float64),
        true_positive=true_positive,
        false_positive=false_positive,
        false_positive_above=false_positive - negative,
        overlap=true_positive / max(1, true_positive[-1]) if overlap is None else np.cumsum(overlap),
        positives=int(true_positive[-1]),
        negatives=int(false_positive[-1]),
    )


def auroc(curve: Curve) -> float | None:
    """Returns the area under the receiver operating characteristic: 1 is perfect, 0.5 is chance. Ties count 1/2.

    None without a positive or without a negative.

    >>> auroc(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]))
    0.75
    """
    if not curve.positives or not curve.negatives:
        return None
    gained = np.diff(curve.true_positive, prepend=0).astype(np.float64)
    ahead = (curve.false_positive_above + curve.false_positive) / 2  # negatives that rank before each positive
    return float(1 - gained @ ahead / (curve.positives * curve.negatives))


def average_precision(curve: Curve) -> float | None:
    """Returns AP = sum over thresholds of (recall_n - recall_(n-1)) * precision_n, without interpolation.

    None without a positive.

    >>> round(average_precision(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])), 4)
    0.8333
    """
    if not curve.positives:
        return None
    precision = curve.true_positive / np.maximum(curve.true_positive + curve.false_positive, 1)
    return float(np.sum(np.diff(curve.true_positive, prepend=0) * precision) / curve.positives)


def f1_max(curve: Curve) -> tuple[float, float] | None:
    """Returns the best F1 over all thresholds and the highest threshold that gives it. None without a positive.

    >>> f1_max(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]))
    (0.8, 0.35)
    """
    if not curve.positives:
        return None
    f1 = 2 * curve.true_positive / (curve.true_positive + curve.false_positive + curve.positives)
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.threshold[best])


def overlap_area(curve: Curve, fpr_limit: float) -> float | None:
    """Returns PRO: the area under `overlap` against the false positive rate from 0 to `fpr_limit`, over `fpr_limit`.

    PRO = 1/L * integral from 0 to L of the mean recall of the regions at false positive rate t, dt, with L the limit.
    Straight lines join the points of all distinct scores. The segment that crosses the limit is cut there.
    None without a positive or without a negative.

    Raises:
        ValueError: `fpr_limit` is not in (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: found {fpr_limit}; expected a number above 0, at most 1")
    if not curve.positives or not curve.negatives:
        return None
    before = np.concatenate([[0.0], curve.overlap[:-1]])
    # The curve is level while only negatives pass. It rises where negatives are tied with positives.
    x = np.stack([curve.false_positive_above, curve.false_positive], 1).ravel() / curve.negatives
    y = np.stack([before, curve.overlap], 1).ravel()
    x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])
    inside = int(np.searchsorted(x, fpr_limit, "right"))
    end = np.interp(fpr_limit, x[inside - 1 : inside + 1], y[inside - 1 : inside + 1])
    x, y = np.append(x[:inside], fpr_limit), np.append(y[:inside], end)
    return float(min(np.trapezoid(y, x) / fpr_limit, 1.0))
