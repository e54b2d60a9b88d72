"""Intra-cluster perceptual distance (IC-LPIPS): do images made from one real image differ from each other?"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.features import pairwise_distance

ZERO_POLICIES = ("drop", "zero")
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class IntraClusterDistance(NamedTuple):
    """`value` (None where no cluster counts, `reason` says why) and the number of images in each cluster."""

    value: float | None
    cluster_sizes: list[int]
    reason: str = ""


def intra_cluster_distance(
    generated: NDArray[np.uint8],
    references: NDArray[np.uint8],
    distance: Embed,
    cap: int = 50,
    zero_policy: str = "drop",
    seed: int = 0,
) -> IntraClusterDistance:
    """Cluster the generated images around the references, then average the pairwise distances within clusters.

    Each generated image joins the reference nearest to it; of a cluster with more than `cap` members a random
    `cap` are kept; the mean over pairs within each cluster is averaged over clusters. Clusters with fewer than
    two members are left out (`drop`, as AnomalyDiffusion's script does) or count as 0 (`zero`, as DFMGAN's).
    Source: Ojha et al. 2021, section 4; both sides are scaled alike, which the public scripts get wrong.

    Args:
        generated: uint8 `[N,H,W,3]`.
        references: uint8 `[K,H,W,3]`, the real training images of the same defect, K at least 1.
        distance: the `embed` of a perceptual distance (see `metrics.features`): images to vectors whose squared
            Euclidean distance is the perceptual distance.
        cap, zero_policy, seed: see above; `seed` decides the random `cap`.

    Raises:
        ValueError: no reference, or an unknown zero policy.
    """
    if zero_policy not in ZERO_POLICIES:
        raise ValueError(f"zero_policy: found {zero_policy!r}; expected one of {', '.join(ZERO_POLICIES)}")
    if not len(references):
        raise ValueError("references: empty; expected at least one image")
    if not len(generated):
        return IntraClusterDistance(None, [0] * len(references), "no generated image")
    return cluster_embeddings(distance(generated), distance(references), cap, zero_policy, seed)


def cluster_embeddings(
    generated: NDArray[np.float32], references: NDArray[np.float32], cap: int, zero_policy: str, seed: int
) -> IntraClusterDistance:
    """`intra_cluster_distance` on embeddings `[N,D]` and `[K,D]` that are at hand already."""
    nearest = pairwise_distance(generated, references).argmin(1)
    within = pairwise_distance(generated)
    rng = np.random.default_rng(seed)
    values, sizes = [], []
    for cluster in range(len(references)):
        members = np.flatnonzero(nearest == cluster)
        sizes.append(len(members))
        if len(members) > cap:
            members = np.sort(rng.permutation(members)[:cap])
        if len(members) > 1:
            pairs = within[np.ix_(members, members)]
            values.append(pairs.sum() / (len(members) * (len(members) - 1)))
        elif zero_policy == "zero":
            values.append(0.0)
    if not values:
        return IntraClusterDistance(None, sizes, "no cluster has two generated images")
    return IntraClusterDistance(float(np.mean(values)), sizes)


def mean_pairwise_distance(embedding: NDArray[np.float32]) -> float | None:
    """Mean perceptual distance over all pairs of one set `[N,D]` (diversity); None with fewer than two images."""
    count = len(embedding)
    return float(pairwise_distance(embedding).sum() / (count * (count - 1))) if count > 1 else None
