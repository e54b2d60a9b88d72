"""Scores over several seeds: mean, standard deviation, and comparison of two sides."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class OverSeeds(NamedTuple):
    """Mean and spread by score.

    Attributes:
        mean: mean over seeds, None if undefined.
        std: sample standard deviation over seeds, None if undefined.
        reasons: one line for each mean that is None.
    """

    mean: dict[str, float | None]
    std: dict[str, float | None]
    reasons: dict[str, str]


def over_seeds(per_seed: Sequence[Mapping[str, Any]]) -> OverSeeds:
    """Returns mean and spread of every score.

    Args:
        per_seed: for each seed its scores by name, each a float or None, with `reasons` by name for each None. Values
            of other types and thresholds are ignored. A score that is undefined for one seed has no mean.

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
    std: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in names:
        values = [scores.get(name) for scores in per_seed]
        defined = [value for value in values if value is not None]
        is_complete = len(defined) == len(values)
        mean[name] = round(fmean(defined), 6) if is_complete else None
        std[name] = round(stdev(defined), 6) if is_complete and len(defined) > 1 else None
        if not is_complete:
            given = [(scores.get("reasons") or {}).get(name) for scores in per_seed if scores.get(name) is None]
            reasons[name] = next((reason for reason in given if reason), "not defined")
    return OverSeeds(mean, std, reasons)


def interval_of(values: NDArray[np.float64], level: float = 0.95) -> list[float] | None:
    """Returns the central interval [low, high] of the finite values, None if at most half of them are finite.

    Args:
        values: one per resample, NaN if undefined.
        level: fraction of the values inside the interval.
    """
    finite = values[np.isfinite(values)]
    if 2 * len(finite) <= len(values):
        return None
    tail = 50 * (1 - level)
    return [round(float(bound), 6) for bound in np.percentile(finite, [tail, 100 - tail])]


def joint_spread(one: float | None, other: float | None) -> float | None:
    """Returns the standard deviation of the difference between one seed's scores of two sides.

    It is the root of the sum of squares, or None if neither side has a spread.

    Args:
        one: sample standard deviation over the seeds of one side, None with a single seed.
        other: the same of the other side.

    >>> joint_spread(0.03, 0.04)
    0.05
    """
    if one is None and other is None:
        return None
    return math.hypot(one or 0.0, other or 0.0)


def gain_over(
    entry: Mapping[str, Any], base: Mapping[str, Any] | None, base_name: str, score: str
) -> tuple[float | None, float | None, str]:
    """Returns the difference of a score between two arms and its spread (see `joint_spread`).

    Args:
        entry: the arm, with `arm`, and `mean`, `std` and `reasons` as in `OverSeeds`.
        base: the arm to compare with, in the same form, or None.
        base_name: name of the arm to compare with.
        score: name of the score.

    Returns:
        The gain and its spread with six digits, None if undefined, and the reason for a missing gain, else "".
    """
    if base is None:
        return None, None, f"no arm {base_name}"
    for side in (entry, base):
        if side["mean"].get(score) is None:
            return None, None, side.get("reasons", {}).get(score, f"{side['arm']} has no {score}")
    spread = joint_spread(entry["std"].get(score), base["std"].get(score))
    return round(entry["mean"][score] - base["mean"][score], 6), spread and round(spread, 6), ""


def beyond_spread(change: float, spread: float | None) -> bool | None:
    """Returns whether a change is larger than the spread, None if the spread is unknown.

    The spread is that of single seeds, not the error of their mean: a few seeds that agree by chance must not make a
    small change look certain.
    """
    return None if spread is None else abs(change) > spread
