"""Localisation scores in bounded memory: pixels are counted in bins and forgotten."""

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.curves import Curve
from defect_core.metrics.localisation import ImageLevel

_DROPPED_BITS = 12  # 20 bits are left: sign, exponent, 11 bits of the fraction
_ZERO, _HALF, _ONE = ((int(np.float32(edge).view(np.int32)) >> _DROPPED_BITS) + (1 << 19) for edge in (0, 0.5, 1))
_INSERTED = 23 * (_ONE - _HALF)  # 1 - score goes through 24 powers of two where the score goes through one
_BINS = (1 << 20) + _INSERTED


class BinnedLocalisationScores(ImageLevel):
    """Streaming form of `LocalisationScores`: the same names and arguments, 24 MB for any number of images.

    Scores fall into about a million bins of a width of 1/2048 of the power of two below the score, whatever their
    range: none need be known. Between 0.5 and 1 the width follows 1 - score instead, so probabilities near 1 are
    resolved like those near 0. Scores of one bin count as tied; a threshold is the lower edge of its bin. Image
    scores and IoU are exact. `compute` adds `error_bound`: `pixel_auroc` differs from the exact value by no more.
    Every score errs by at most 1e-3 where scores spread over some thousand bins, as those of a trained segmenter
    do; maps with all scores within 0.1 % of 5 are not resolved, and `error_bound` says so.

    >>> scores = BinnedLocalisationScores(window=1)
    >>> scores.update([np.array([[0.9, 0.1]])], [np.array([[True, False]])])
    >>> scores.compute()["pixel_ap"], scores.compute()["error_bound"]
    (1.0, 0.0)
    """

    def compute(self) -> dict:
        """All scores over the images seen so far, and `error_bound` of `pixel_auroc`."""
        return {**super().compute(), "error_bound": self._pixel_curve().tied / 2}

    def _clear(self) -> None:
        self._positive = np.zeros(_BINS, np.int64)
        self._negative = np.zeros(_BINS, np.int64)
        self._overlap = np.zeros(_BINS, np.float64)

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_], weight: NDArray[np.float64]) -> None:
        bins = _bins(score_map)
        low = int(bins.min())
        bins -= low  # counting starts at the lowest bin of the map: a few thousand bins instead of a million
        inside = bins[mask]
        counted = np.bincount(bins.ravel())
        defective = np.bincount(inside, minlength=len(counted))
        here = slice(low, low + len(counted))
        self._positive[here] += defective
        self._negative[here] += counted - defective
        if len(inside):
            self._overlap[here] += np.bincount(inside, weight, len(counted))

    def _pixel_curve(self) -> Curve:
        filled = np.flatnonzero(self._positive)[::-1]
        at_least = np.cumsum(self._negative[::-1])[::-1]
        gained = np.cumsum(self._overlap[filled])
        return Curve(
            threshold=_lower_edges(filled),
            true_positive=np.cumsum(self._positive[filled]),
            false_positive=at_least[filled],
            false_positive_above=at_least[filled] - self._negative[filled],
            overlap=gained / gained[-1] if len(gained) else gained,
            positives=int(self._positive.sum()),
            negatives=int(self._negative.sum()),
        )


def _bins(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Bin numbers that grow with the score: the upper bits of a float order like integers, once negatives are turned.

    From 0.5 to 1 the bits are those of 1 - score, which is exact there: networks that are sure put all their scores
    just below 1, where the bins of the score itself are a thousand times wider than those near 0.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # adding zero makes -0 and 0 one score
    ordered = np.where(bits < 0, np.int32(-(2**31)) - bits - 1, bits) if (bits < 0).any() else bits
    bins = (ordered >> _DROPPED_BITS) + _ZERO
    if (upper := scores >= 0.5).any():
        bins[upper] += _INSERTED
        sure = upper & (scores < 1)
        bins[sure] = 2 * _HALF - (((1 - scores[sure]).view(np.int32) >> _DROPPED_BITS) + _ZERO)
    return bins


def _lower_edges(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    sure = (bins >= _HALF) & (bins < _ONE + _INSERTED)
    kept = np.where(sure, 2 * _HALF - bins + 1, np.where(bins >= _HALF, bins - _INSERTED, bins))
    ordered = (kept - _ZERO) << _DROPPED_BITS
    edges = np.where(ordered < 0, -(2**31) - ordered - 1, ordered).astype(np.int32).view(np.float32)
    # a bin of 1 - score holds its lower edge, so a bin of the score begins just above the mirrored edge
    mirrored = 1 - edges.astype(np.float64)
    above = mirrored.astype(np.float32)
    above = np.where(above <= mirrored, np.nextafter(above, np.float32(2)), above)
    return np.where(sure, np.maximum(above, np.float32(0.5)), edges)
