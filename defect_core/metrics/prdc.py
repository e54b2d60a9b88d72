"""Precision, recall, density and coverage of generated features (PRDC)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-12  # relative rounding error of a squared distance in float64
NEIGHBOURS = 5  # Naeem et al. 2020, section 4


class PrecisionRecallResult(NamedTuple):
    """Result of `precision_recall`. Higher is better.

    Attributes:
        precision: 0..1.
        recall: 0..1.
        density: at least 0, about 1 for equal distributions.
        coverage: 0..1.
        k: number of neighbours, after the limit to the smaller set.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = NEIGHBOURS) -> PrecisionRecallResult:
    """Returns precision, recall, density and coverage of two sets of features.

    The ball of a row reaches to its k-th nearest neighbour in its own set. A row on the edge of a ball is inside.
    precision: fraction of generated rows inside a real ball. recall: fraction of real rows inside a generated ball
    (Kynkäänniemi et al. 2019, eq. 1-3). density: mean number of real balls around a generated row, over k. coverage:
    fraction of real balls that contain a generated row (Naeem et al. 2020, eq. 3-4).

    Args:
        real: `[N,D]`, at least two rows.
        generated: `[M,D]`, at least two rows.
        k: rank of the neighbour, at least 1. At most one less than the smaller set.

    Raises:
        ValueError: fewer than two rows, different dimensions, or k below 1.

    >>> result = precision_recall([[0.0], [1.0], [2.0]], [[0.5], [0.6], [9.0]], k=1)
    >>> [round(value, 2) for value in result]
    [0.67, 0.67, 1.33, 0.67, 1]
    """
    a, b = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features {a.shape} and {b.shape}: expected [N,D] and [M,D] with at least two rows each")
    if k < 1:
        raise ValueError(f"k: found {k}; expected at least 1")
    k = min(k, len(a) - 1, len(b) - 1)
    between = _distances(a, b)
    real_radius, generated_radius = _radii(_distances(a, a), k), _radii(_distances(b, b), k)
    in_real = between <= real_radius[:, None]
    in_generated = between <= generated_radius[None]
    return PrecisionRecallResult(
        precision=float(in_real.any(0).mean()),
        recall=float(in_generated.any(1).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float(in_real.any(1).mean()),
        k=k,
    )


def _radii(within: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    # The row itself has rank 0 with distance zero.
    return np.partition(within, k, axis=1)[:, k]


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances `[N,M]`. Distances below the rounding error of the expanded square are set to zero."""
    squares = (a**2).sum(1)[:, None], (b**2).sum(1)[None]
    distance = squares[0] + squares[1] - 2 * a @ b.T
    distance[distance < ROUNDING * (squares[0] + squares[1])] = 0
    return np.sqrt(distance)
