"""Thresholds of the image score for a given overkill, from the scores of normal images that no training has used.

An image is rejected if its score is above the threshold. Test images must not be among the scores: a threshold is
fixed before the test.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

OVERKILL_TARGETS = (0.001, 0.01, 0.05)
"""Fractions of normal images that an inspector accepts to reject."""
MIN_EXTRAPOLATED = 20
"""Fewest scores from which a threshold above the largest one is extrapolated."""
TAIL_FRACTION = 0.2
"""Fraction of the scores whose excesses give the tail of an extrapolation."""
_LOGIT_MARGIN = 1e-7  # scores of 0 and 1 have no finite logit

Support = Literal["measured", "extrapolated", "unavailable"]


class OperatingPoint(NamedTuple):
    """A threshold for one overkill target.

    Attributes:
        target: fraction of normal images that may be rejected.
        threshold: an image with a higher score is rejected; None if it is unavailable.
        support: `measured`: a quantile of the scores. `extrapolated`: beyond the largest score. `unavailable`: too
            few scores.
        note: what a threshold that is not measured would need, in one line, else "".
    """

    target: float
    threshold: float | None
    support: Support
    note: str


def required_normals(target: float) -> int:
    """Return the number of held-out normal images with which a target is measured: 1 / target - 1, rounded up.

    With fewer images even the largest score is exceeded more often than the target allows.

    >>> required_normals(0.01), required_normals(0.001)
    (99, 999)
    """
    return math.ceil(round(1 / target - 1, 9))


def overkill_threshold(scores: ArrayLike, target: float) -> OperatingPoint:
    """Return the threshold that rejects a normal image with a probability of at most `target`.

    With N scores it is the score of rank ceil((1 - target) (N + 1)). A new score, exchangeable with the N others,
    exceeds it with a probability of at most `target` (split conformal prediction: Lei et al. 2018,
    "Distribution-free predictive inference for regression", theorem 2.2).

    If that rank is above N, the threshold is extrapolated: the excesses of the k largest logits over the next one, u,
    are taken as exponential (the generalised Pareto distribution with shape 0: Coles 2001, "An Introduction to
    Statistical Modeling of Extreme Values", section 4.2), k = `TAIL_FRACTION` N. A new score is above u with a
    probability of (k + 1) / (N + 1). With the sum S of the excesses, a gamma variable, logit(threshold) = u + c S is
    exceeded with a probability of (1 + c)^-k times that, which gives c. So `target` is again the expected overkill, if
    the tail is exponential. The threshold is at least the largest score.

    Args:
        scores: image scores of held-out normal images, 0 to 1, `[N]`.
        target: fraction of normal images that may be rejected, above 0 and below 1.

    Raises:
        ValueError: a score outside 0 to 1, or a target that is no fraction.

    >>> overkill_threshold(np.linspace(0, 1, 101), 0.05).threshold
    0.96
    >>> overkill_threshold([0.1, 0.2], 0.05).note
    '5 % overkill needs 19 held-out normal images (20 to extrapolate); found 2'
    """
    values = np.sort(np.asarray(scores, np.float64).ravel())
    if not 0 < target < 1:
        raise ValueError(f"target: found {target}; expected a number above 0 and below 1")
    if len(values) and not (values[0] >= 0 and values[-1] <= 1):
        raise ValueError(f"scores: found {values[0]:g} to {values[-1]:g}; expected numbers from 0 to 1")
    count = len(values)
    rank = math.ceil(round((1 - target) * (count + 1), 9))
    if rank <= count:
        return OperatingPoint(target, float(values[rank - 1]), "measured", "")
    need = f"{100 * target:g} % overkill needs {required_normals(target)} held-out normal images"
    if count < MIN_EXTRAPOLATED:
        note = f"{need} ({MIN_EXTRAPOLATED} to extrapolate); found {count}"
        return OperatingPoint(target, None, "unavailable", note)
    tail = math.ceil(TAIL_FRACTION * count)
    note = f"{need}; found {count}: extrapolated from the {tail} largest scores"
    return OperatingPoint(target, _extrapolate(values, tail, target), "extrapolated", note)


def _extrapolate(values: NDArray[np.float64], tail: int, target: float) -> float:
    """Return the threshold from the `tail` largest of sorted scores."""
    clipped = np.clip(values, _LOGIT_MARGIN, 1 - _LOGIT_MARGIN)
    logits = np.log(clipped / (1 - clipped))
    start, count = logits[-tail - 1], len(values)
    factor = ((tail + 1) / ((count + 1) * target)) ** (1 / tail) - 1
    logit = start + factor * float(np.sum(logits[-tail:] - start))
    return max(float(values[-1]), 1 / (1 + math.exp(-logit)))
