"""Precision, recall, density and coverage: is each generated image plausible, and is each real one reached?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEIGHBOURS = 5


class PrecisionRecall(NamedTuple):
    """All but `density` (at least 0, about 1 for equal distributions) lie in 0..1; higher is better. `k`: as used."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Compare two sets of features by balls around each row that reach to its k-th nearest neighbour in its own set.

    precision: part of the generated rows inside some real ball. recall: part of the real rows inside some generated
    ball (Kynkäänniemi et al. 2019, eq. 1-3). density: mean number of real balls that a generated row lies in, over k.
    coverage: part of the real balls that hold a generated row (Naeem et al. 2020, eq. 3-4). A row on the edge of a
    ball is inside, so sets of equal rows score 1. With few rows k shrinks to one less than the smaller set.

    Args:
        real, generated: `[N,D]` and `[M,D]`, at least two rows each.
        k: which neighbour; at least 1.

    Raises:
        ValueError: fewer than two rows, different dimensions, or k below 1.

    >>> found = precision_recall([[0.0], [1.0], [2.0]], [[0.5], [0.6], [9.0]], k=1)
    >>> [round(value, 2) for value in found]
    [0.67, 0.67, 1.33, 0.67, 1]
    """
    a, b = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features {a.shape} and {b.shape}: expected [N,D] and [M,D] with at least two rows each")
    if k < 1:
        raise ValueError(f"k: found {k}; expected at least 1")
    k = min(k, len(a) - 1, len(b) - 1)
    between = _distances(a, b)
    real_radius, made_radius = _radii(_distances(a, a), k), _radii(_distances(b, b), k)
    in_real = between <= real_radius[:, None]
    in_made = between <= made_radius[None]
    return PrecisionRecall(
        precision=float(in_real.any(0).mean()),
        recall=float(in_made.any(1).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float(in_real.any(1).mean()),
        k=k,
    )


def _radii(within: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    # the row itself stands first with distance zero
    return np.partition(within, k, axis=1)[:, k]


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean `[N,M]`; what is lost where rows nearly coincide is set to zero."""
    squares = (a**2).sum(1)[:, None], (b**2).sum(1)[None]
    distance = squares[0] + squares[1] - 2 * a @ b.T
    distance[distance < 1e-12 * (squares[0] + squares[1])] = 0
    return np.sqrt(distance)
