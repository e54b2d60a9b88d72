"""Memorisation: the nearest training image of each generated image."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

COPY_RATIO = 0.1  # below a tenth of the median distance between training images a generated image counts as a copy
MIN_UNIT = 1e-9  # a smaller median distance within training means that its images are copies of each other


class Neighbours(NamedTuple):
    """Nearest training row of each of N generated rows.

    Attributes:
        rows: row numbers in the training set `[N]`.
        distance: Euclidean distance `[N]`.
    """

    rows: NDArray[np.int64]
    distance: NDArray[np.float64]


class MemorisationResult(NamedTuple):
    """Result of `memorisation`.

    Attributes:
        ratio: median distance to the nearest training row, in units of the median nearest distance within training.
            About 1 is as new as another real image, near 0 is a copy. None if the unit is zero or undefined.
        copies: fraction of generated rows with a ratio below `COPY_RATIO`, or None.
        distance: median distance to the nearest training row.
    """

    ratio: float | None
    copies: float | None
    distance: float


def nearest_neighbours(generated: ArrayLike, training: ArrayLike) -> Neighbours:
    """Returns the nearest training row of each generated row, by Euclidean distance.

    Args:
        generated: `[N,D]` features or flattened pixels.
        training: `[K,D]`, K at least 1.

    >>> nearest_neighbours([[0.0, 1.0]], [[5.0, 5.0], [0.0, 0.0]]).rows.tolist()
    [1]
    """
    a, b = np.asarray(generated, np.float64), np.asarray(training, np.float64)
    square = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    index = square.argmin(1)
    # The expanded square loses digits for nearly equal rows, which matter most here.
    return Neighbours(index, np.linalg.norm(a - b[index], axis=1))


def memorisation(generated: ArrayLike, training: ArrayLike) -> MemorisationResult:
    """Returns the distances to the training set, relative to those within it.

    Args:
        generated: features or flattened pixels `[N,D]`, N at least 1.
        training: `[K,D]`, K at least 1. With K = 1 there is no unit, so `ratio` and `copies` are None.
    """
    a, b = np.asarray(generated, np.float64), np.asarray(training, np.float64)
    distance = nearest_neighbours(a, b).distance
    unit = _unit(b)
    if unit is None:
        return MemorisationResult(None, None, float(np.median(distance)))
    ratio = distance / unit
    return MemorisationResult(float(np.median(ratio)), float((ratio < COPY_RATIO).mean()), float(np.median(distance)))


class NearestPair(NamedTuple):
    """A generated row and its nearest training row.

    Attributes:
        generated: row number in the generated set.
        training: row number in the training set.
        distance: Euclidean distance.
        ratio: distance in the unit of `MemorisationResult.ratio`, or None.
    """

    generated: int
    training: int
    distance: float
    ratio: float | None


def nearest_pairs(generated: ArrayLike, training: ArrayLike, count: int = 5) -> list[NearestPair]:
    """Returns the `count` generated rows that are nearest to a training row, nearest first.

    Args:
        generated: `[N,D]`.
        training: `[K,D]`.
        count: largest number of pairs.

    >>> nearest_pairs([[0.0], [7.0]], [[1.0], [7.5]], count=1)
    [NearestPair(generated=1, training=1, distance=0.5, ratio=0.07692307692307693)]
    """
    nearest = nearest_neighbours(generated, training)
    unit = _unit(np.asarray(training, np.float64))
    order = np.argsort(nearest.distance, kind="stable")[:count]
    return [
        NearestPair(
            int(i),
            int(nearest.rows[i]),
            float(nearest.distance[i]),
            float(nearest.distance[i] / unit) if unit else None,
        )
        for i in order
    ]


def _unit(training: NDArray[np.float64]) -> float | None:
    """Median distance of a training row to the nearest other one. None with one row or with copies only."""
    if len(training) < 2:
        return None
    squares = (training**2).sum(1)
    inside = np.maximum(squares[:, None] + squares[None] - 2 * training @ training.T, 0.0)
    np.fill_diagonal(inside, np.inf)
    # Equal rows must have a distance of exactly zero, so the expanded square only selects.
    unit = float(np.median(np.linalg.norm(training - training[inside.argmin(1)], axis=1)))
    return unit if unit > MIN_UNIT else None
