"""Rank correlation of every image score with the downstream gain, over pairs of a product and an arm.

Only arms with their own synthetic set count. `mix` and the arms of a sweep reuse sets that are counted already.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

# With five pairs even a perfect order has p = 2/120, and its interval covers most of the range.
MIN_PAIRS = 6
_PERMUTATIONS = 2000
_NORMAL_QUANTILE = 1.959964  # 97.5 %, for a two-sided interval of 95 %
_TOLERANCE = 1e-12  # rounding of a correlation that equals the observed one


def predict_gain(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return Spearman's rank correlation of every image score with the downstream gain.

    Many scores on few pairs show a strong correlation by chance; `p` is not corrected for that. Arms of one product
    share test images and baseline, so the pairs are less independent than interval and `p` assume.

    Args:
        rows: rows of the leaderboard, each with `gain` (pixel AP of the segmenter over `real_only`, or None) and
            `scores` (image scores by name, or None).
        seed: of the permutation test.

    Returns:
        By score: `pairs` (number of rows with score and gain), `rho` (-1 to 1; a good predictor whose lower values
        are better is at -1), `interval` of `rho` (95 %), `p` (two-sided, from permuted gains), and `reason`: why
        `rho` is None, else "".
    """
    names = sorted({name for row in rows for name in (row["scores"] or {})})
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        pairs = [
            (row["scores"][name], row["gain"])
            for row in rows
            if row["gain"] is not None and row["scores"] and row["scores"].get(name) is not None
        ]
        values, gains = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else (np.empty(0),) * 2
        entry: dict[str, Any] = {"pairs": len(pairs), "rho": None, "interval": None, "p": None, "reason": ""}
        if len(pairs) < MIN_PAIRS:
            entry["reason"] = f"{len(pairs)} pairs of a product and an arm have both; expected at least {MIN_PAIRS}"
        elif len(set(values)) < 2 or len(set(gains)) < 2:
            entry["reason"] = "all scores or all gains are equal"
        else:
            entry["rho"], entry["p"] = _spearman(values, gains, seed)
            entry["interval"] = rank_interval(entry["rho"], len(pairs))
        results[name] = entry
    return results


def rank_interval(rho: float, count: int) -> list[float]:
    """Return the 95 % confidence interval [low, high] of Spearman's `rho` on `count` >= 4 pairs.

    Fisher's z has the variance (1 + rho^2 / 2) / (count - 3): Bonett and Wright, "Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000). z is infinite at |rho| = 1.
    There the inner limit is that of the order with two neighbours swapped.

    >>> rank_interval(0.0, 19)
    [-0.454209, 0.454209]
    """
    swapped = 1 - 12 / (count * (count * count - 1))
    inner = max(-swapped, min(swapped, rho))
    width = _NORMAL_QUANTILE * math.sqrt((1 + inner * inner / 2) / (count - 3))
    low, high = (math.tanh(math.atanh(inner) + side * width) for side in (-1, 1))
    return [round(min(low, rho), 6), round(max(high, rho), 6)]


def _spearman(values: NDArray[np.float64], gains: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return rho and its two-sided p, six decimals each."""
    a, b = (rank - rank.mean() for rank in (rankdata(values), rankdata(gains)))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rho = float(a @ b)
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.tile(b, (_PERMUTATIONS, 1)), axis=1) @ a
    # The observed order counts as one permutation, so p is never zero.
    p = (1 + int((np.abs(permuted) >= abs(rho) - _TOLERANCE).sum())) / (_PERMUTATIONS + 1)
    return round(rho, 6), round(p, 6)
