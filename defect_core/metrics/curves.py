"""Ranking scores from one curve: AUROC, average precision, F1-max, and the area under a bounded overlap curve.

None of them changes between two neighbouring scores of positives, except by negatives that pass one by one, and for
those the areas have a closed form. So a curve needs its points at the distinct scores of *positives* only, each with
the number of negatives above it and at it. Positives are few in defect maps; negatives are sorted without an index.
That is exact, and many times faster than sorting all items with their labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Curve:
    """Cumulated counts at every distinct score of a positive, from the highest score to the lowest.

    At `threshold[i]` all items with score >= threshold are called defective: `true_positive[i]` of `positives`
    rightly and `false_positive[i]` of `negatives` wrongly. `false_positive_above[i]` negatives lie strictly above the
    threshold; the difference of the two is tied with positives. `overlap[i]` is the mean recall of the defect
    regions, or of all positives where no regions were given.
    """

    threshold: NDArray[np.floating]
    true_positive: NDArray[np.int64]
    false_positive: NDArray[np.int64]
    false_positive_above: NDArray[np.int64]
    overlap: NDArray[np.float64]
    positives: int
    negatives: int

    @property
    def tied(self) -> float:
        """Fraction of all pairs of a positive and a negative that share a score, 0..1: AUROC counts each as a half.

        For binned scores half of it bounds the error of AUROC.
        """
        pairs = np.diff(self.true_positive, prepend=0) * (self.false_positive - self.false_positive_above)
        return float(pairs.sum() / max(1, self.positives * self.negatives))


def ranking_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """The curve of any scores and labels.

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
    return curve_of(score[label], np.sort(score[~label]))


def curve_of(
    positive: NDArray[np.floating], negative: NDArray[np.floating], weight: NDArray[np.floating] | None = None
) -> Curve:
    """The curve from the scores of the two classes.

    Args:
        positive: `[P]` in any order.
        negative: `[N]`, ascending.
        weight: `[P]`, what each positive adds to `overlap`; it is divided by its sum. None weighs all alike.
    """
    count, order = len(positive), np.argsort(positive)
    ranked = positive[order]
    # ties share one threshold: the first of each run of equal scores, ascending
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if count else np.empty(0, np.int64)
    threshold = ranked[first]
    true_positive = count - first
    if weight is None:
        overlap = true_positive / max(1, count)
    else:
        gained = np.cumsum(weight[order][::-1], dtype=np.float64)
        overlap = gained[true_positive - 1] / gained[-1] if count else np.empty(0)
    at_least = len(negative) - np.searchsorted(negative, threshold, "left")
    above = len(negative) - np.searchsorted(negative, threshold, "right")
    columns = (threshold, true_positive, at_least, above, overlap)
    return Curve(*(column[::-1] for column in columns), positives=count, negatives=len(negative))


def auroc(curve: Curve) -> float | None:
    """Area under the receiver operating characteristic: ties count a half; 1 is perfect, 0.5 chance.

    >>> auroc(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]))
    0.75
    """
    if not curve.positives or not curve.negatives:
        return None
    gained = np.diff(curve.true_positive, prepend=0).astype(np.float64)
    ahead = (curve.false_positive_above + curve.false_positive) / 2  # negatives that a positive loses against
    return float(1 - gained @ ahead / (curve.positives * curve.negatives))


def average_precision(curve: Curve) -> float | None:
    """AP = sum over thresholds of (recall_n - recall_(n-1)) * precision_n, without interpolation.

    >>> round(average_precision(ranking_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])), 4)
    0.8333
    """
    if not curve.positives:
        return None
    precision = curve.true_positive / (curve.true_positive + curve.false_positive)
    return float(np.sum(np.diff(curve.true_positive, prepend=0) * precision) / curve.positives)


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


def overlap_area(curve: Curve, fpr_limit: float) -> float | None:
    """Area under `overlap` against the false positive rate from 0 to `fpr_limit`, divided by `fpr_limit`.

    The curve joins the points of all distinct scores by straight lines; the piece that crosses the limit is cut
    there. None without a positive or without a negative.

    Raises:
        ValueError: a limit outside 0..1 or equal to 0.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: found {fpr_limit}; expected a number above 0, at most 1")
    if not curve.positives or not curve.negatives:
        return None
    before = np.concatenate([[0.0], curve.overlap[:-1]])
    # level while negatives pass alone, then a slope where negatives tie with positives
    x = np.stack([curve.false_positive_above, curve.false_positive], 1).ravel() / curve.negatives
    y = np.stack([before, curve.overlap], 1).ravel()
    x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])
    inside = int(np.searchsorted(x, fpr_limit, "right"))
    end = np.interp(fpr_limit, x[inside - 1 : inside + 1], y[inside - 1 : inside + 1])
    x, y = np.append(x[:inside], fpr_limit), np.append(y[:inside], end)
    return float(min(np.trapezoid(y, x) / fpr_limit, 1.0))
