"""Which image score predicts the gain? Rank correlation over all pairs of a product and an arm.

A pair is an arm with a synthetic set of its own: `mix` and the points of a sweep draw on sets that are counted already.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

# with five pairs even a perfect order has p = 2/120 and an interval over most of the range
MIN_PAIRS = 6
_SHUFFLES = 2000


def predict_gain(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of every image score with the downstream gain.

    Args:
        rows: of the leaderboard, each with `gain` (of the segmenter's pixel AP over `real_only`, or None) and `scores`
            (image scores by name, or None).
        seed: decides the shuffles of the permutation test.

    Returns:
        by score: `pairs` (how many rows have both), `rho` (-1..1; a score whose lower values are better predicts well
        at -1), its `interval` (95 %), `p` (two-sided: part of the shuffles of the gains with a correlation as strong)
        and `reason`, "" or why there is no `rho`. Many scores tried on few pairs will find a strong correlation by
        chance: read `p` so. Arms of one product share test images and baseline, so the pairs are less independent than
        interval and `p` take them to be.
    """
    names = sorted({name for row in rows for name in (row["scores"] or {})})
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        both = [
            (row["scores"][name], row["gain"])
            for row in rows
            if row["gain"] is not None and row["scores"] and row["scores"].get(name) is not None
        ]
        values, gains = (np.array(column) for column in zip(*both, strict=True)) if both else (np.empty(0),) * 2
        entry: dict[str, Any] = {"pairs": len(both), "rho": None, "interval": None, "p": None, "reason": ""}
        if len(both) < MIN_PAIRS:
            entry["reason"] = f"{len(both)} pairs of a product and an arm with both; expected at least {MIN_PAIRS}"
        elif len(set(values)) < 2 or len(set(gains)) < 2:
            entry["reason"] = "all scores or all gains are the same"
        else:
            entry["rho"], entry["p"] = _spearman(values, gains, seed)
            entry["interval"] = rank_interval(entry["rho"], len(both))
        found[name] = entry
    return found


def rank_interval(rho: float, count: int) -> list[float]:
    """[low, high] that hold 95 % of what Spearman's correlation could be, given `rho` on `count` >= 4 pairs.

    Fisher's z with the variance (1 + rho^2 / 2) / (count - 3) of Bonett and Wright, "Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000). There z is infinite at 1: a perfect
    order is given the far end of the one with two neighbours swapped, so it says no more than that.

    >>> rank_interval(0.0, 19)
    [-0.454209, 0.454209]
    """
    swapped = 1 - 12 / (count * (count * count - 1))
    inner = max(-swapped, min(swapped, rho))
    width = 1.959964 * math.sqrt((1 + inner * inner / 2) / (count - 3))
    ends = [math.tanh(math.atanh(inner) + side * width) for side in (-1, 1)]
    return [round(min(ends[0], rho), 6), round(max(ends[1], rho), 6)]


def _spearman(values: np.ndarray, gains: np.ndarray, seed: int) -> tuple[float, float]:
    a, b = (rank - rank.mean() for rank in (rankdata(values), rankdata(gains)))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rho = float(a @ b)
    rng = np.random.default_rng(seed)
    by_chance = rng.permuted(np.tile(b, (_SHUFFLES, 1)), axis=1) @ a
    # the order that was found is one of the shuffles, so p is never zero
    p = (1 + int((np.abs(by_chance) >= abs(rho) - 1e-12).sum())) / (_SHUFFLES + 1)
    return round(rho, 6), round(p, 6)
