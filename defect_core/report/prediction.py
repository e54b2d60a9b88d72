"""Which image score predicts the gain? Rank correlation over all pairs of a product and an arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

MIN_PAIRS = 4
_SHUFFLES = 2000


def predict_gain(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of every image score with the downstream gain.

    Args:
        rows: of the leaderboard, each with `gain` (of the segmenter's pixel AP over `real_only`, or None) and `scores`
            (image scores by name, or None).
        seed: decides the shuffles of the permutation test.

    Returns:
        by score: `pairs` (how many rows have both), `rho` (-1..1; a score whose lower values are better predicts well
        at -1), `p` (two-sided: part of the shuffles of the gains with a correlation as strong) and `reason`, "" or why
        there is no `rho`. Many scores tried on few pairs will find a strong correlation by chance: read `p` so.
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
        entry: dict[str, Any] = {"pairs": len(both), "rho": None, "p": None, "reason": ""}
        if len(both) < MIN_PAIRS:
            entry["reason"] = f"{len(both)} pairs of a product and an arm; expected at least {MIN_PAIRS}"
        elif len(set(values)) < 2 or len(set(gains)) < 2:
            entry["reason"] = "all scores or all gains are the same"
        else:
            entry["rho"], entry["p"] = _spearman(values, gains, seed)
        found[name] = entry
    return found


def _spearman(values: np.ndarray, gains: np.ndarray, seed: int) -> tuple[float, float]:
    a, b = (rank - rank.mean() for rank in (rankdata(values), rankdata(gains)))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rho = float(a @ b)
    rng = np.random.default_rng(seed)
    by_chance = rng.permuted(np.tile(b, (_SHUFFLES, 1)), axis=1) @ a
    # the order that was found is one of the shuffles, so p is never zero
    p = (1 + int((np.abs(by_chance) >= abs(rho) - 1e-12).sum())) / (_SHUFFLES + 1)
    return round(rho, 6), round(p, 6)
