"""Intra-cluster perceptual distance (IC-LPIPS): do images made from one real image differ from each other?

Papers print numbers of three public scripts under this one name; `VARIANTS` names them. Compare only within one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.features import pairwise_distance

ZERO_POLICIES = ("drop", "zero")
Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_BATCH = 32


@dataclass(frozen=True)
class Variant:
    """One way to compute IC-LPIPS.

    Attributes:
        net: LPIPS trunk, `vgg` or `alex`.
        cap: most members of a cluster that are compared with each other.
        zero_policy: what a cluster with fewer than two members does: `drop` leaves it out, `zero` counts 0.
        raw_references: True lets the references enter with values 0..255 where the network expects -1..1, as two of
            the public scripts do by mistake: generated images then join the wrong clusters.
        references: which real images are the clusters' centres: the `training` images of the defect, or `all`.
        image_size: side in pixels that images are brought to.
    """

    net: str = "vgg"
    cap: int = 50
    zero_policy: str = "drop"
    raw_references: bool = False
    references: str = "training"
    image_size: int = 256


VARIANTS = {
    "ours": Variant(),
    "anomalydiffusion": Variant(),  # its script scales both sides alike: the same numbers as ours
    "dfmgan": Variant("alex", 200, "zero", raw_references=True),
    "seas": Variant("vgg", 140, "zero", raw_references=True, references="all"),
}


class IntraClusterDistance(NamedTuple):
    """`value` under the zero policy (None where no cluster counts, `reason` says why), the number of images in each
    cluster, and the values under both policies: `dropped` and `zeroed`.
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
) -> IntraClusterDistance:
    """IC-LPIPS of images in memory under a named variant; with masks IC-LPIPS(a), where all but the defect is black.

    Args:
        generated, references: uint8 `[H,W,3]` of any sizes; the references are the real images that
            `Variant.references` names.
        variant: a name from `VARIANTS`, or settings.
        seed: decides which `cap` members of a cluster are compared.
        generated_masks, reference_masks: bool `[H,W]`, both or none.

    Raises:
        ValueError: an unknown variant, no reference, or masks that do not match.
        InputError: the network's weights are not at hand.
    """
    from defect_core.metrics.features import LpipsDistance
    from defect_core.metrics.images import resize_images

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
    raw = network.embed_raw if variant.raw_references else None
    return intra_cluster_distance(*sides, network.embed, variant.cap, variant.zero_policy, seed, raw)


def intra_cluster_distance(
    generated: NDArray[np.uint8],
    references: NDArray[np.uint8],
    distance: Embed,
    cap: int = 50,
    zero_policy: str = "drop",
    seed: int = 0,
    reference_distance: Embed | None = None,
) -> IntraClusterDistance:
    """Cluster the generated images around the references, then average the pairwise distances within clusters.

    Each generated image joins the reference nearest to it; of a cluster with more than `cap` members a random
    `cap` are kept; the mean over pairs within each cluster is averaged over clusters. Clusters with fewer than
    two members are left out (`drop`, as AnomalyDiffusion's script does) or count as 0 (`zero`, as DFMGAN's).
    Source: Ojha et al. 2021, section 4; both sides are scaled alike, which two of the public scripts get wrong.
    The network sees each image once: distances of pairs come from its embeddings.

    Args:
        generated: uint8 `[N,H,W,3]`.
        references: uint8 `[K,H,W,3]`, the real training images of the same defect, K at least 1.
        distance: the `embed` of a perceptual distance (see `metrics.features`): images to vectors whose squared
            Euclidean distance is the perceptual distance.
        cap, zero_policy, seed: see above; `seed` decides the random `cap`.
        reference_distance: embeds the references where it is not as `distance` does (`Variant.raw_references`).

    Raises:
        ValueError: no reference, or an unknown zero policy.
    """
    score = IntraClusterScore(distance, references, cap, zero_policy, seed, reference_distance)
    for start in range(0, len(generated), _BATCH):
        score.update(generated[start : start + _BATCH])
    return score.compute()


class IntraClusterScore:
    """`intra_cluster_distance` over batches: `update` with generated images, `compute`, `reset`.

    Holds the embeddings of the references and of at most `cap` members per cluster. Which members are kept does not
    depend on how the images are divided into batches.

    >>> grey = lambda *v: np.stack([np.full((2, 2, 3), x, np.uint8) for x in v])
    >>> mean = lambda images: images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32)
    >>> score = IntraClusterScore(mean, references=grey(0, 100))
    >>> score.update(grey(1, 3, 99))
    >>> score.compute()[:2]
    (4.0, [2, 1])
    """

    def __init__(
        self,
        distance: Embed,
        references: NDArray[np.uint8],
        cap: int = 50,
        zero_policy: str = "drop",
        seed: int = 0,
        reference_distance: Embed | None = None,
    ) -> None:
        if not len(references):
            raise ValueError("references: empty; expected at least one image")
        self._distance = distance
        self._clusters = _Clusters((reference_distance or distance)(references), cap, zero_policy, seed)

    def update(self, generated: NDArray[np.uint8]) -> None:
        """Add generated images, uint8 `[N,H,W,3]`."""
        if len(generated):
            self._clusters.add(self._distance(generated))

    def compute(self) -> IntraClusterDistance:
        """The score of the images seen so far."""
        return self._clusters.result()

    def reset(self) -> None:
        """Forget the generated images; the references stay."""
        self._clusters.clear()


def cluster_embeddings(
    generated: NDArray[np.float32], references: NDArray[np.float32], cap: int, zero_policy: str, seed: int
) -> IntraClusterDistance:
    """`intra_cluster_distance` on embeddings `[N,D]` and `[K,D]` that are at hand already."""
    clusters = _Clusters(references, cap, zero_policy, seed)
    if len(generated):
        clusters.add(generated)
    return clusters.result()


def masked_images(images: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Images `[N,H,W,3]` with everything outside their masks `[N,H,W]` black, as IC-LPIPS(a) compares them."""
    if images.shape[:3] != masks.shape:
        raise ValueError(f"images {images.shape} and masks {masks.shape}: expected one mask per image, of its size")
    return images * masks[..., None]


def mean_pairwise_distance(embedding: NDArray[np.float32]) -> float | None:
    """Mean perceptual distance over all pairs of one set `[N,D]` (diversity); None with fewer than two images."""
    spread = Spread()
    spread.update(embedding)
    return spread.compute()


@dataclass
class Spread:
    """Mean distance over all pairs of a set of embeddings, in the memory of one: `update`, `compute`, `reset`.

    Squared distances over all pairs sum up to N * sum of squares - square of the sum: no pair need be formed.

    >>> spread = Spread()
    >>> spread.update(np.float32([[0.0], [3.0]]))
    >>> spread.compute()
    9.0
    """

    count: int = 0
    total: NDArray[np.float64] | float = 0.0
    squares: float = 0.0
    _origin: Any = field(default=None, repr=False)

    def update(self, embedding: NDArray[np.float32]) -> None:
        """Add embeddings `[N,D]`."""
        if not len(embedding):
            return
        if self._origin is None:
            self._origin = np.array(embedding[0])
        moved = embedding - self._origin  # small numbers, so that equal images give exactly zero
        self.count += len(moved)
        self.total = self.total + moved.sum(0, dtype=np.float64)
        self.squares += float(np.einsum("nd,nd->", moved, moved, dtype=np.float64))

    def compute(self) -> float | None:
        """The mean over pairs; None with fewer than two embeddings."""
        if self.count < 2:
            return None
        pairs = self.count * self.squares - float(np.square(self.total).sum())
        return max(0.0, 2 * pairs / (self.count * (self.count - 1)))

    def reset(self) -> None:
        """Forget all embeddings."""
        self.count, self.total, self.squares, self._origin = 0, 0.0, 0.0, None


class _Clusters:
    """Nearest reference of each embedding, and of each cluster the `cap` members that a seeded draw ranks first."""

    def __init__(self, references: NDArray[np.float32], cap: int, zero_policy: str, seed: int) -> None:
        if zero_policy not in ZERO_POLICIES:
            raise ValueError(f"zero_policy: found {zero_policy!r}; expected one of {', '.join(ZERO_POLICIES)}")
        if cap < 2:
            raise ValueError(f"cap: found {cap}; expected at least 2")
        self.references, self.cap, self.zero_policy, self.seed = references, cap, zero_policy, seed
        self.clear()

    def clear(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.sizes = [0] * len(self.references)
        self.members: list[list[tuple[float, NDArray[np.float32]]]] = [[] for _ in self.references]

    def add(self, embeddings: NDArray[np.float32]) -> None:
        nearest = pairwise_distance(embeddings, self.references).argmin(1)
        for cluster, rank, row in zip(nearest, self.rng.random(len(embeddings)), embeddings, strict=True):
            members = self.members[cluster]
            self.sizes[cluster] += 1
            if len(members) == self.cap:
                last = max(range(self.cap), key=lambda i: members[i][0])
                if members[last][0] < rank:
                    continue
                del members[last]
            members.append((rank, row.copy()))  # a view would keep the whole batch in memory

    def result(self) -> IntraClusterDistance:
        if not any(self.sizes):
            return IntraClusterDistance(None, self.sizes, "no generated image")
        means = []
        for members in self.members:
            count = len(members)
            if count > 1:
                means.append(pairwise_distance(np.stack([row for _, row in members])).sum() / (count * (count - 1)))
        dropped = float(np.mean(means)) if means else None
        zeroed = float(np.sum(means)) / len(self.sizes)
        value = dropped if self.zero_policy == "drop" else zeroed
        reason = "no cluster has two generated images" if value is None else ""
        return IntraClusterDistance(value, list(self.sizes), reason, dropped, zeroed)
