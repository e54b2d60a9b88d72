"""When a score measured over several seeds is really another one."""

import math


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


def beyond_spread(change: float, spread: float | None) -> bool | None:
    """Whether a change is larger than the spread; None where nothing is known of the spread.

    This compares with single seeds, not with the error of the mean over them: few seeds that happen to agree must
    not make a small step look certain.
    """
    return None if spread is None else abs(change) > spread
