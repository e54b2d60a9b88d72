"""Distances between two sets of features: Frechet (FID's formula) and kernel (KID's formula)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), S with n - 1 in the denominator.
    Source: Heusel et al. 2017, eq. 6. With centred and scaled rows S_a = A'A and S_b = B'B the last trace is the
    sum of the singular values of A B', an n_a x n_b matrix: exact, real and quick where there are fewer images
    than dimensions and the usual matrix square root is singular. Few images still bias the value upwards:
    compare only values of equal counts.

    Args:
        features_a, features_b: `[N,D]` and `[M,D]`, at least two rows each.

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
    if min(len(a), len(b)) > a.shape[1]:  # many images: QR keeps A'A with as few rows as dimensions
        root_a, root_b = np.linalg.qr(root_a, mode="r"), np.linalg.qr(root_b, mode="r")
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return float(max(distance, 0.0))


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets, and the subset size that was used."""

    mean: float
    std: float
    subset_size: int


def kernel_distance(
    features_a: ArrayLike, features_b: ArrayLike, seed: int, subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3, averaged over random subsets.

    Source: Binkowski et al. 2018 (KID), eq. 4 and section 4. The subset size shrinks to the smaller set. An
    unbiased estimate may be below zero.

    Args:
        features_a, features_b: `[N,D]` and `[M,D]`, at least two rows each.
        seed: decides the subsets.
        subsets: how many pairs of subsets.
        subset_size: rows drawn from each set, without replacement.

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
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


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
