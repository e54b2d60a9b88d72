"""Curves of pixel scores in constant memory: pixels are counted in bins, 24 MB for any number of images.

About a million bins cover all float32 scores; no range must be known. A bin is 1/2048 of the power of two below the
score wide. From 0.5 to 1 the width follows 1 - score, so that probabilities near 1 are resolved like those near 0.
Scores of one bin count as tied, and a threshold is the lower edge of its bin. Half of `Curve.tied_fraction` bounds the
error of AUROC. Every score errs by at most 1e-3 if the scores spread over some thousand bins, as those of a trained
segmenter do. Maps whose scores are all within 0.1 % of one number are not resolved.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.curves import Curve

_DROPPED_BITS = 12  # 20 bits remain: sign, exponent, 11 bits of the fraction
_ZERO, _HALF, _ONE = ((int(np.float32(edge).view(np.int32)) >> _DROPPED_BITS) + (1 << 19) for edge in (0, 0.5, 1))
_INSERTED = 23 * (_ONE - _HALF)  # 1 - score passes 24 powers of two where the score passes one
BINS: int = (1 << 20) + _INSERTED


class BinCounts(NamedTuple):
    """Counts of one image in a range of bins.

    Attributes:
        bins: the range of bins.
        positive: number of defective pixels in each.
        negative: number of normal pixels in each.
        overlap: sum of 1 / (area of its region) over the defective pixels in each.
    """

    bins: slice
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    overlap: NDArray[np.float64]


def count_bins(
    score_map: NDArray[np.float32], mask: NDArray[np.bool_], weight: NDArray[np.float64] | None = None
) -> BinCounts:
    """Returns the counts of one image.

    Args:
        score_map: finite float32 `[H,W]`.
        mask: bool `[H,W]`.
        weight: 1 / (area of its region) for each defective pixel in reading order. None is 1.
    """
    bins = bin_numbers(score_map)
    low = int(bins.min())
    bins -= low  # counts start at the lowest bin of the map: a few thousand bins instead of a million
    inside = bins[mask]
    total = np.bincount(bins.ravel())
    positive = np.bincount(inside, minlength=len(total))
    overlap = np.bincount(inside, weight, len(total)).astype(np.float64, copy=False)
    return BinCounts(slice(low, low + len(total)), positive, total - positive, overlap)


def binned_curve(positive: NDArray[np.int64], negative: NDArray[np.int64], overlap: NDArray[np.float64]) -> Curve:
    """Returns the curve of summed `BinCounts`, each `[BINS]`."""
    filled = np.flatnonzero(positive)[::-1]
    at_least = np.cumsum(negative[::-1])[::-1]
    cumulative = np.cumsum(overlap[filled])
    return Curve(
        threshold=lower_edges(filled),
        true_positive=np.cumsum(positive[filled]),
        false_positive=at_least[filled],
        false_positive_above=at_least[filled] - negative[filled],
        overlap=cumulative / cumulative[-1] if len(cumulative) else cumulative,
        positives=int(positive.sum()),
        negatives=int(negative.sum()),
    )


def bin_numbers(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Returns bin numbers that grow with the score, of the same shape.

    The upper bits of a float order like integers once those of negative numbers are reversed. From 0.5 to 1 the bits
    are those of 1 - score, which is exact there. Confident networks put all scores just below 1, where bins of the
    score itself are a thousand times wider than near 0.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # adding zero makes -0 and 0 one score
    ordered = np.where(bits < 0, np.int32(-(2**31)) - bits - 1, bits) if (bits < 0).any() else bits
    bins = (ordered >> _DROPPED_BITS) + _ZERO
    if (upper := scores >= 0.5).any():
        bins[upper] += _INSERTED
        mirrored = upper & (scores < 1)
        bins[mirrored] = 2 * _HALF - (((1 - scores[mirrored]).view(np.int32) >> _DROPPED_BITS) + _ZERO)
    return bins


def lower_edges(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the lowest score of each bin."""
    is_mirrored = (bins >= _HALF) & (bins < _ONE + _INSERTED)
    plain = np.where(is_mirrored, 2 * _HALF - bins + 1, np.where(bins >= _HALF, bins - _INSERTED, bins))
    ordered = (plain - _ZERO) << _DROPPED_BITS
    edges = np.where(ordered < 0, -(2**31) - ordered - 1, ordered).astype(np.int32).view(np.float32)
    # A bin of 1 - score contains its lower edge, so a bin of the score begins just above the mirrored edge.
    mirrored = 1 - edges.astype(np.float64)
    above = mirrored.astype(np.float32)
    above = np.where(above <= mirrored, np.nextafter(above, np.float32(2)), above)
    return np.where(is_mirrored, np.maximum(above, np.float32(0.5)), edges)
