"""A score over several seeds: its mean and spread, and when it is really another one."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class OverSeeds(NamedTuple):
    """By score: `mean` and sample standard deviation `std`, None where it is not defined; `reasons`: why there is no
    mean, one line for each None.
    """

    mean: dict[str, float | None]
    std: dict[str, float | None]
    reasons: dict[str, str]


def over_seeds(per_seed: Sequence[Mapping[str, Any]]) -> OverSeeds:
    """Mean and spread of every score of the seeds.

    Args:
        per_seed: for each seed its scores by name, each a float or None, with `reasons` by name for each None. Other
            values, and thresholds, are left out. A score that one seed does not define has no mean.

    >>> over_seeds([{"ap": 0.25, "iou": None, "reasons": {"iou": "no defect"}}, {"ap": 0.75, "iou": 0.5}])
    OverSeeds(mean={'ap': 0.5, 'iou': None}, std={'ap': 0.353553, 'iou': None}, reasons={'iou': 'no defect'})
    """
    names = {
        name: None
        for scores in per_seed
        for name, value in scores.items()
        if (value is None or isinstance(value, float)) and "threshold" not in name
    }
    mean: dict[str, float | None] = {}
    spread: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in names:
        values = [scores.get(name) for scores in per_seed]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        mean[name] = round(fmean(known), 6) if whole else None
        spread[name] = round(stdev(known), 6) if whole and len(known) > 1 else None
        if not whole:
            why = [(scores.get("reasons") or {}).get(name) for scores in per_seed if scores.get(name) is None]
            reasons[name] = next((reason for reason in why if reason), "not defined")
    return OverSeeds(mean, spread, reasons)


def interval_of(drawn: NDArray[np.float64], level: float = 0.95) -> list[float] | None:
    """[low, high] that hold `level` of the finite values; None where fewer than half of them are finite."""
    known = drawn[np.isfinite(drawn)]
    if 2 * len(known) <= len(drawn):
        return None
    tail = 50 * (1 - level)
    return [round(float(v), 6) for v in np.percentile(known, [tail, 100 - tail])]


def joint_spread(one: float | None, other: float | None) -> float | None:
    """Standard deviation of the difference between a seed's score on one side and a seed's on the other.

    Args:
        one, other: sample standard deviations over the seeds of either side; None where there is but one seed.

    Returns:
        The root of the sum of squares; None when neither side has a spread.

    >>> joint_spread(0.03, 0.04)
    0.05
    """
    if one is None and other is None:
        return None
    return math.hypot(one or 0.0, other or 0.0)


def gain_over(
    entry: Mapping[str, Any], base: Mapping[str, Any] | None, base_name: str, score: str
) -> tuple[float | None, float | None, str]:
    """By how much a score of one arm exceeds another's, and the spread of that (see `joint_spread`).

    Args:
        entry, base: each with `arm`, and `mean`, `std` and `reasons` as in `OverSeeds`; no `base`, no gain.
        base_name: the other arm.

    Returns:
        The gain and its spread, six digits, None where undefined; why there is no gain, else "".
    """
    if base is None:
        return None, None, f"no arm {base_name}"
    for side in (entry, base):
        if side["mean"].get(score) is None:
            return None, None, side.get("reasons", {}).get(score, f"{side['arm']} has no {score}")
    spread = joint_spread(entry["std"].get(score), base["std"].get(score))
    return round(entry["mean"][score] - base["mean"][score], 6), spread and round(spread, 6), ""


def beyond_spread(change: float, spread: float | None) -> bool | None:
    """Whether a change is larger than the spread; None where nothing is known of the spread.

    This compares with single seeds, not with the error of the mean over them: few seeds that happen to agree must
    not make a small step look certain.
    """
    return None if spread is None else abs(change) > spread
