"""Does the generator repeat its training images? The nearest training neighbour of each generated image."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

COPY_RATIO = 0.1  # nearer to a training image than a tenth of what lies between training images


class Neighbours(NamedTuple):
    """For each of N generated rows: `index` of the nearest training row and the Euclidean `distance` to it."""

    index: NDArray[np.int64]
    distance: NDArray[np.float64]


class Memorisation(NamedTuple):
    """`ratio`: median nearest distance to training, in units of the median nearest distance within training
    (about 1: as new as another real image would be; near 0: copies; None if the unit is zero or undefined).
    `copies`: fraction of generated rows with a ratio below `COPY_RATIO`. `distance`: the median, as it is.
    """

    ratio: float | None
    copies: float | None
    distance: float


def nearest_neighbours(generated: ArrayLike, training: ArrayLike) -> Neighbours:
    """Nearest training row of each generated row, by Euclidean distance.

    Args:
        generated: `[N,D]` features or flattened pixels.
        training: `[K,D]`, K at least 1.

    >>> nearest_neighbours([[0.0, 1.0]], [[5.0, 5.0], [0.0, 0.0]]).index.tolist()
    [1]
    """
    a, b = np.asarray(generated, np.float64), np.asarray(training, np.float64)
    square = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    index = square.argmin(1)
    # the expanded square loses digits where rows are nearly equal, and those are the ones that matter here
    return Neighbours(index, np.linalg.norm(a - b[index], axis=1))


def memorisation(generated: ArrayLike, training: ArrayLike) -> Memorisation:
    """Compare distances to the training set with those inside it.

    Args:
        generated: `[N,D]`, N at least 1.
        training: `[K,D]`, K at least 1; with K = 1 there is no unit and `ratio`, `copies` are None.
    """
    a, b = np.asarray(generated, np.float64), np.asarray(training, np.float64)
    distance = nearest_neighbours(a, b).distance
    unit = _unit(b)
    if unit is None:
        return Memorisation(None, None, float(np.median(distance)))
    ratio = distance / unit
    return Memorisation(float(np.median(ratio)), float((ratio < COPY_RATIO).mean()), float(np.median(distance)))


class NearestPair(NamedTuple):
    """A generated row and the training row nearest to it; `ratio` in units of `Memorisation.ratio`, or None."""

    generated: int
    training: int
    distance: float
    ratio: float | None


def nearest_pairs(generated: ArrayLike, training: ArrayLike, count: int = 5) -> list[NearestPair]:
    """The `count` generated rows that come nearest to a training row, nearest first: what to look at for copies.

    >>> nearest_pairs([[0.0], [7.0]], [[1.0], [7.5]], count=1)
    [NearestPair(generated=1, training=1, distance=0.5, ratio=0.07692307692307693)]
    """
    found = nearest_neighbours(generated, training)
    unit = _unit(np.asarray(training, np.float64))
    order = np.argsort(found.distance, kind="stable")[:count]
    return [
        NearestPair(
            int(i), int(found.index[i]), float(found.distance[i]), float(found.distance[i] / unit) if unit else None
        )
        for i in order
    ]


def _unit(training: NDArray[np.float64]) -> float | None:
    """Median distance of a training row to the nearest other one; None with one row or with copies only."""
    if len(training) < 2:
        return None
    squares = (training**2).sum(1)
    inside = np.maximum(squares[:, None] + squares[None] - 2 * training @ training.T, 0.0)
    np.fill_diagonal(inside, np.inf)
    # as above: equal rows must be exactly zero apart
    unit = float(np.median(np.linalg.norm(training - training[inside.argmin(1)], axis=1)))
    return unit if unit > 1e-9 else None
