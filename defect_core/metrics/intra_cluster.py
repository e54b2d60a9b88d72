"""Intra-cluster perceptual distance (IC-LPIPS): the diversity of generated images around each real image.

Papers report numbers of three public scripts under this name. `VARIANTS` lists them. Compare only within one variant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.features import LpipsDistance, pairwise_distance
from defect_core.metrics.images import resize_images

ZERO_POLICIES = ("drop", "zero")
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """Settings of one implementation of IC-LPIPS.

    Attributes:
        net: LPIPS trunk, `vgg` or `alex`.
        cap: largest number of members of a cluster that are compared.
        zero_policy: `drop` ignores a cluster with fewer than two members, `zero` counts it as 0.
        raw_references: whether the references enter the network with values 0..255 instead of -1..1. Two public
            scripts do so by mistake, which assigns generated images to the wrong clusters.
        references: real images that are cluster centres: the `training` images of the defect type, or `all`.
        image_size: side in pixels to which images are resized.
    """

    net: str = "vgg"
    cap: int = 50
    zero_policy: str = "drop"
    raw_references: bool = False
    references: str = "training"
    image_size: int = 256


VARIANTS = {
    "ours": Variant(),
    "anomalydiffusion": Variant(),  # its script scales both sides in the same way: the same numbers as ours
    "dfmgan": Variant("alex", 200, "zero", raw_references=True),
    "seas": Variant("vgg", 140, "zero", raw_references=True, references="all"),
}


class IntraClusterResult(NamedTuple):
    """Intra-cluster distance.

    Attributes:
        value: distance under the zero policy, at least 0. None if no cluster counts.
        cluster_sizes: number of generated images in each cluster.
        reason: why `value` is None, else "".
        dropped: value under the policy `drop`.
        zeroed: value under the policy `zero`.
    """

    value: float | None
    cluster_sizes: list[int]
    reason: str = ""
    dropped: float | None = None
    zeroed: float | None = None


def ic_lpips(
    generated: Sequence[NDArray[np.uint8]],
    references: Sequence[NDArray[np.uint8]],
    variant: str | Variant = "ours",
    seed: int = 0,
    generated_masks: Sequence[NDArray[np.bool_]] | None = None,
    reference_masks: Sequence[NDArray[np.bool_]] | None = None,
    device: str = "cpu",
) -> IntraClusterResult:
    """Returns IC-LPIPS under a variant. With masks it is IC-LPIPS(a): all pixels outside the defect are black.

    Args:
        generated: uint8 `[H,W,3]` of any sizes.
        references: uint8 `[H,W,3]` of any sizes, the real images that `Variant.references` names.
        variant: a name from `VARIANTS`, or settings.
        seed: seed of the choice of `cap` members of a cluster.
        generated_masks: bool `[H,W]`, one per generated image.
        reference_masks: bool `[H,W]`, one per reference. Masks are needed for both sides or none.
        device: torch device of the network.

    Raises:
        ValueError: an unknown variant, no reference, or masks that do not match.
        InputError: the weights of the network are not installed.
    """
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(f"variant: found {variant!r}; expected one of {', '.join(VARIANTS)}")
        variant = VARIANTS[variant]
    if (generated_masks is None) != (reference_masks is None):
        raise ValueError("masks given for one side only; expected both or none")
    sides = [resize_images(images, variant.image_size) for images in (generated, references)]
    if generated_masks is not None and reference_masks is not None:
        sides = [
            masked_images(images, resize_images(masks, variant.image_size))
            for images, masks in zip(sides, (generated_masks, reference_masks), strict=True)
        ]
    network = LpipsDistance(variant.net, device)
    embed_references = network.embed_raw if variant.raw_references else None
    return intra_cluster_distance(
        sides[0], sides[1], network.embed, variant.cap, variant.zero_policy, seed, embed_references
    )


def intra_cluster_distance(
    generated: NDArray[np.uint8],
    references: NDArray[np.uint8],
    embed: Embed,
    cap: int = 50,
    zero_policy: str = "drop",
    seed: int = 0,
    embed_references: Embed | None = None,
) -> IntraClusterResult:
    """Returns the mean pairwise distance within clusters of generated images, averaged over the clusters.

    Each generated image joins the cluster of its nearest reference. From a larger cluster, `cap` random members are
    compared. The network sees each image once, because the distances come from embeddings.
    Source: Ojha et al. 2021, section 4. Both sides are scaled in the same way, unlike in two public scripts.

    Args:
        generated: uint8 `[N,H,W,3]`.
        references: uint8 `[K,H,W,3]`, the real training images of the same defect type, K at least 1.
        embed: maps images to perceptual embeddings (see `metrics.features`). The squared Euclidean distance of two
            embeddings is the perceptual distance.
        cap: largest number of members of a cluster that are compared, at least 2.
        zero_policy: `drop` ignores a cluster with fewer than two members (AnomalyDiffusion's script), `zero` counts it
            as 0 (DFMGAN's script).
        seed: seed of the choice of members.
        embed_references: embeds the references if `embed` does not (see `Variant.raw_references`).

    Raises:
        ValueError: no reference, an unknown zero policy, or a cap below 2.
    """
    check_settings(len(references), cap, zero_policy)
    clusters = _Clusters((embed_references or embed)(references), cap, seed)
    for start in range(0, len(generated), _BATCH):
        clusters.add(embed(generated[start : start + _BATCH]))
    return clusters.result(zero_policy)


def cluster_embeddings(
    generated: NDArray[np.float32], references: NDArray[np.float32], cap: int, zero_policy: str, seed: int
) -> IntraClusterResult:
    """Returns `intra_cluster_distance` of embeddings `[N,D]` and `[K,D]`.

    Args:
        generated: embeddings of the generated images `[N,D]`.
        references: embeddings of the references `[K,D]`.
        cap: largest number of members of a cluster that are compared.
        zero_policy: `drop` or `zero`.
        seed: seed of the choice of members.
    """
    check_settings(len(references), cap, zero_policy)
    clusters = _Clusters(references, cap, seed)
    if len(generated):
        clusters.add(generated)
    return clusters.result(zero_policy)


def masked_images(images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns images `[N,H,W,3]` that are black outside their masks `[N,H,W]`, as IC-LPIPS(a) compares them."""
    if images.shape[:3] != masks.shape:
        raise ValueError(f"images {images.shape} and masks {masks.shape}: expected one mask per image, of its size")
    return images * masks[..., None]


def mean_pairwise_distance(embedding: NDArray[np.float32]) -> float | None:
    """Returns the mean perceptual distance over all pairs of embeddings `[N,D]`, None with fewer than two."""
    pairs = PairwiseMean()
    pairs.update(embedding)
    return pairs.compute()


@dataclass
class PairwiseMean:
    """Mean squared distance over all pairs of a set of embeddings, in the memory of one embedding.

    The squared distances of all pairs sum up to N * (sum of squares) - (square of the sum), so no pair is formed.

    Attributes:
        count: number of embeddings.
        total: their sum, relative to the first embedding.
        squares: sum of their squares, relative to the first embedding.

    >>> pairs = PairwiseMean()
    >>> pairs.update(np.float32([[0.0], [3.0]]))
    >>> pairs.compute()
    9.0
    """

    count: int = 0
    total: NDArray[np.float64] | float = 0.0
    squares: float = 0.0
    _origin: NDArray[np.float32] | None = field(default=None, repr=False)

    def update(self, embedding: NDArray[np.float32]) -> None:
        """Adds embeddings `[N,D]`."""
        if not len(embedding):
            return
        if self._origin is None:
            self._origin = np.array(embedding[0])
        relative = embedding - self._origin  # numbers are small, so equal images give exactly zero
        self.count += len(relative)
        self.total = self.total + relative.sum(0, dtype=np.float64)
        self.squares += float(np.einsum("nd,nd->", relative, relative, dtype=np.float64))

    def compute(self) -> float | None:
        """Returns the mean over pairs, None with fewer than two embeddings."""
        if self.count < 2:
            return None
        pairs = self.count * self.squares - float(np.square(self.total).sum())
        return max(0.0, 2 * pairs / (self.count * (self.count - 1)))


def check_settings(references: int, cap: int, zero_policy: str) -> None:
    """Raises ValueError for settings that `intra_cluster_distance` does not accept."""
    if not references:
        raise ValueError("references: empty; expected at least one image")
    if zero_policy not in ZERO_POLICIES:
        raise ValueError(f"zero_policy: found {zero_policy!r}; expected one of {', '.join(ZERO_POLICIES)}")
    if cap < 2:
        raise ValueError(f"cap: found {cap}; expected at least 2")


def assign_clusters(
    embeddings: NDArray[np.float32], references: NDArray[np.float32], seed: int, previous: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the nearest reference and the random rank of each embedding.

    Args:
        embeddings: `[N,D]`.
        references: `[K,D]`.
        seed: seed of the ranks. Image i has value i of its random stream.
        previous: number of images before these.
    """
    rng = np.random.Generator(np.random.PCG64(seed).advance(previous))
    return pairwise_distance(embeddings, references).argmin(1), rng.random(len(embeddings))


def members_to_keep(clusters: NDArray[np.int64], ranks: NDArray[np.float64], cap: int) -> NDArray[np.int64]:
    """Returns the indices, ascending, of the `cap` members of each cluster that have the lowest ranks."""
    order = np.lexsort((ranks, clusters))
    position = np.arange(len(order)) - np.searchsorted(clusters[order], clusters[order], "left")
    return np.sort(order[position < cap])


def cluster_result(
    rows: list[NDArray[np.float32]], clusters: NDArray[np.int64], sizes: list[int], zero_policy: str
) -> IntraClusterResult:
    """Returns the result of members `rows` with their cluster numbers and the sizes of all clusters."""
    if not any(sizes):
        return IntraClusterResult(None, sizes, "no generated image")
    means = []
    for cluster in range(len(sizes)):
        members = [rows[i] for i in np.flatnonzero(clusters == cluster)]
        count = len(members)
        if count > 1:
            means.append(pairwise_distance(np.stack(members)).sum() / (count * (count - 1)))
    dropped = float(np.mean(means)) if means else None
    zeroed = float(np.sum(means)) / len(sizes)
    value = dropped if zero_policy == "drop" else zeroed
    reason = "no cluster has two generated images" if value is None else ""
    return IntraClusterResult(value, sizes, reason, dropped, zeroed)


class _Clusters:
    """Members of each cluster of generated images, at most `cap` each, in the order of arrival."""

    def __init__(self, references: NDArray[np.float32], cap: int, seed: int) -> None:
        self.references, self.cap, self.seed = references, cap, seed
        self.sizes = [0] * len(references)
        self.rows: list[NDArray[np.float32]] = []
        self.clusters, self.ranks = np.empty(0, np.int64), np.empty(0)

    def add(self, embeddings: NDArray[np.float32]) -> None:
        clusters, ranks = assign_clusters(embeddings, self.references, self.seed, sum(self.sizes))
        for cluster in clusters:
            self.sizes[cluster] += 1
        self.clusters, self.ranks = np.append(self.clusters, clusters), np.append(self.ranks, ranks)
        keep = members_to_keep(self.clusters, self.ranks, self.cap)
        old = len(self.rows)
        # A view of one row would keep the whole batch in memory.
        self.rows = [self.rows[i] if i < old else embeddings[i - old].copy() for i in keep]
        self.clusters, self.ranks = self.clusters[keep], self.ranks[keep]

    def result(self, zero_policy: str) -> IntraClusterResult:
        return cluster_result(self.rows, self.clusters, list(self.sizes), zero_policy)
