"""Distances between two sets of features: Fréchet (the formula of FID) and kernel (the formula of KID).

torchmetrics' FID takes the eigenvalues of a D x D product, which needs half a minute at D = 2048 and is inexact for
fewer images than dimensions. The factored form here needs neither.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Returns the squared Fréchet distance of the Gaussians fitted to two sets of features, at least 0.

    |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), with covariances S over n - 1.
    With centred and scaled rows S_a = A'A and S_b = B'B, the last trace is the sum of the singular values of A B'.
    That matrix is only n_a x n_b. Few images bias the value upwards: compare only values of equal counts.
    Source: Heusel et al. 2017, eq. 6.

    Args:
        features_a: `[N,D]`, at least two rows.
        features_b: `[M,D]`, at least two rows.

    Raises:
        ValueError: fewer than two rows, or different dimensions.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    a, b = _matrix(features_a, "features_a"), _matrix(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} dimensions; expected the same")
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    if min(len(a), len(b)) > a.shape[1]:  # QR keeps A'A with D rows
        root_a, root_b = (np.asarray(np.linalg.qr(root, mode="r")) for root in (root_a, root_b))
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return float(max(distance, 0.0))


class KernelDistanceResult(NamedTuple):
    """Kernel distance over random subsets.

    Attributes:
        mean: mean over subsets.
        std: standard deviation over subsets.
        subset_size: rows per subset, after the limit to the smaller set.
    """

    mean: float
    std: float
    subset_size: int


def kernel_distance(
    features_a: ArrayLike, features_b: ArrayLike, seed: int, subsets: int = 100, subset_size: int = 1000
) -> KernelDistanceResult:
    """Returns the unbiased squared maximum mean discrepancy under (x.y / D + 1)^3, averaged over random subsets.

    An unbiased estimate may be below zero. Source: Binkowski et al. 2018 (KID), eq. 4 and section 4.

    Args:
        features_a: `[N,D]`, at least two rows.
        features_b: `[M,D]`, at least two rows.
        seed: seed of the subsets.
        subsets: number of pairs of subsets.
        subset_size: rows of each subset, without replacement. At most the size of the smaller set.

    Raises:
        ValueError: fewer than two rows, or different dimensions.
    """
    a, b = _matrix(features_a, "features_a"), _matrix(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have {a.shape[1]} and {b.shape[1]} dimensions; expected the same")
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1  # every subset would be the whole set
    aa, bb, ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        i, j = rng.permutation(len(a))[:size], rng.permutation(len(b))[:size]
        within = _off_diagonal_mean(aa[np.ix_(i, i)]) + _off_diagonal_mean(bb[np.ix_(j, j)])
        values.append(within - 2 * ab[np.ix_(i, j)].mean())
    return KernelDistanceResult(float(np.mean(values)), float(np.std(values)), size)


def _matrix(features: ArrayLike, name: str) -> NDArray[np.float64]:
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < 2:
        raise ValueError(f"{name}: found shape {matrix.shape}; expected [N,D] with at least two rows")
    return matrix


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _off_diagonal_mean(kernel: NDArray[np.float64]) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))
