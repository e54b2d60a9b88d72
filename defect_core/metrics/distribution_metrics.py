"""torchmetrics classes over the scores of sets of images: distances, PRDC, Inception Score, memorisation, diversity.

Each class applies a pure function to all rows that `update` received, so the division into batches does not matter.
Give `feature_extractor` to update with uint8 images `[B,3,H,W]`, or None to update with feature rows `[B,D]`.
Classes with two sets follow torchmetrics: `update(images, real=True)` or `update(images, real=False)`.
Results are float64 tensors: a scalar, or a dict of scalars for `self.log_dict`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from defect_core.metrics.diversity import mask_diversity
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.intra_cluster import assign_clusters, check_settings, cluster_result, members_to_keep
from defect_core.metrics.neighbours import memorisation
from defect_core.metrics.prdc import NEIGHBOURS, precision_recall

Rows: TypeAlias = Tensor | NDArray[Any]
FeatureExtractor: TypeAlias = Callable[[Tensor], Rows]


class _SetMetric(Metric):
    """Extracts one feature row per image."""

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    plot_lower_bound = 0.0

    def __init__(self, feature_extractor: FeatureExtractor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature_extractor = feature_extractor

    def _rows(self, batch: Rows | ArrayLike) -> Tensor:
        batch = batch if isinstance(batch, Tensor) else torch.as_tensor(np.asarray(batch))
        if self.feature_extractor is not None:
            if batch.dtype is not torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
                raise ValueError(f"images: found {batch.dtype} {tuple(batch.shape)}; expected uint8 [B,3,H,W]")
            with torch.no_grad():
                batch = torch.as_tensor(self.feature_extractor(batch.to(self.device)))
        if batch.ndim != 2:
            raise ValueError(f"features: found shape {tuple(batch.shape)}; expected [B,D]")
        return batch.detach().to(self.device)

    def _scalar(self, value: float | None) -> Tensor:
        return torch.tensor(float("nan") if value is None else value, dtype=torch.float64, device=self.device)


class _TwoSetMetric(_SetMetric):
    """Collects feature rows of real and of generated images."""

    real_features: list[Tensor]
    generated_features: list[Tensor]

    def __init__(self, feature_extractor: FeatureExtractor | None = None, **kwargs: Any) -> None:
        super().__init__(feature_extractor, **kwargs)
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("generated_features", [], dist_reduce_fx="cat")

    def update(self, images: Rows | ArrayLike, real: bool) -> None:
        """Adds images to one of the sets.

        Args:
            images: uint8 `[B,3,H,W]`, or features `[B,D]` without a feature extractor.
            real: whether they are real or generated.

        Raises:
            ValueError: another type or shape.
        """
        (self.real_features if real else self.generated_features).append(self._rows(images))

    def _sets(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return _concatenated(self.real_features), _concatenated(self.generated_features)


class FrechetDistance(_TwoSetMetric):
    """Squared Fréchet distance of the Gaussians fitted to both sets: FID on the pool3 features of Inception.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, eq. 6). Range 0 upwards, lower is better.
    `compute` raises ValueError with fewer than two images in a set.

    Args:
        feature_extractor: maps uint8 images `[B,3,H,W]` to features `[B,D]`, such as `features.TensorExtractor`.
            None: `update` takes features.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = FrechetDistance()
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> metric.compute().item()
    9.0
    """

    def compute(self) -> Tensor:
        """Returns the distance of the two sets, a scalar tensor."""
        return self._scalar(frechet_distance(*self._sets()))


class KernelDistance(_TwoSetMetric):
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3: KID on the pool3 features of Inception.

    Mean over random subsets (Binkowski et al. 2018, eq. 4). About 0 for equal distributions, may be negative, lower is
    better. `compute` raises ValueError with fewer than two images in a set.

    Args:
        feature_extractor: see `FrechetDistance`.
        subsets: number of pairs of subsets.
        subset_size: rows of each subset, at most the size of the smaller set.
        seed: seed of the subsets.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = KernelDistance()
    >>> metric.update(torch.tensor([[0.0], [1.0]]), real=True)
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=False)
    >>> metric.compute().item()
    -13.0
    """

    plot_lower_bound = None

    def __init__(
        self,
        feature_extractor: FeatureExtractor | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, **kwargs)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def compute(self) -> Tensor:
        """Returns the mean distance over the subsets, a scalar tensor."""
        return self._scalar(kernel_distance(*self._sets(), self.seed, self.subsets, self.subset_size).mean)


class PrecisionRecallDensityCoverage(_TwoSetMetric):
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). Higher is better.

    See `prdc.precision_recall` for the definitions. `compute` returns a dict of scalars `precision`, `recall`,
    `density` and `coverage`, and raises ValueError with fewer than two images in a set.

    Args:
        feature_extractor: see `FrechetDistance`.
        k: rank of the neighbour that bounds the ball of an image.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = PrecisionRecallDensityCoverage(k=1)
    >>> metric.update(torch.tensor([[0.0], [1.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[0.5], [0.6], [9.0]]), real=False)
    >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
    {'precision': 0.67, 'recall': 0.67, 'density': 1.33, 'coverage': 0.67}
    """

    higher_is_better = True

    def __init__(self, feature_extractor: FeatureExtractor | None = None, k: int = NEIGHBOURS, **kwargs: Any) -> None:
        super().__init__(feature_extractor, **kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """Returns the four scores as scalar tensors."""
        result = precision_recall(*self._sets(), self.k)._asdict()
        return {name: self._scalar(value) for name, value in result.items() if name != "k"}


class Memorisation(_TwoSetMetric):
    """Distance from generated images to their nearest training images. The real images are the training images.

    `compute` returns a dict of scalars, see `neighbours.MemorisationResult`: `memorisation_ratio` (about 1 is as new as
    another real image, near 0 is a copy), `memorisation_copies` (fraction of copies) and `memorisation_distance`.
    Ratio and copies are NaN without two different training images.

    Args:
        feature_extractor: see `FrechetDistance`.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = Memorisation()
    >>> metric.update(torch.tensor([[0.0], [1.0]]), real=True)
    >>> metric.update(torch.tensor([[1.5]]), real=False)
    >>> metric.compute()["memorisation_ratio"].item()
    0.5
    """

    higher_is_better = None

    def compute(self) -> dict[str, Tensor]:
        """Returns the three scores as scalar tensors.

        Raises:
            ValueError: a set without an image.
        """
        training, generated = self._sets()
        if not len(training) or not len(generated):
            raise ValueError(f"{len(training)} training and {len(generated)} generated images; expected at least one")
        result = memorisation(generated, training)._asdict()
        return {f"memorisation_{name}": self._scalar(value) for name, value in result.items()}


class InceptionScore(_SetMetric):
    """exp of the mean KL divergence of p(y|x) from p(y) over the generated images (Salimans et al. 2016).

    Range 1 to the number of classes, higher is better. `compute` raises ValueError with fewer images than splits.

    Args:
        feature_extractor: maps uint8 images `[B,3,H,W]` to class probabilities `[B,K]`. None: `update` takes
            probabilities, rows that sum to 1.
        splits: number of consecutive parts of the images over which the score is averaged.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = InceptionScore()
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> metric.compute().item()
    2.0
    """

    higher_is_better = True
    plot_lower_bound = 1.0

    probabilities: list[Tensor]

    def __init__(self, feature_extractor: FeatureExtractor | None = None, splits: int = 1, **kwargs: Any) -> None:
        super().__init__(feature_extractor, **kwargs)
        self.splits = splits
        self.add_state("probabilities", [], dist_reduce_fx="cat")

    def update(self, images: Rows | ArrayLike) -> None:
        """Adds uint8 images `[B,3,H,W]`, or class probabilities `[B,K]` without a feature extractor."""
        self.probabilities.append(self._rows(images))

    def compute(self) -> Tensor:
        """Returns the score of all images, a scalar tensor."""
        return self._scalar(inception_score(_concatenated(self.probabilities), self.splits))


class MaskDiversity(Metric):
    """Mean of 1 - IoU over all pairs of masks: 0 (copies) to 1 (no pair overlaps). Higher is more diverse.

    `compute` returns a dict of scalars, see `diversity.MaskDiversityResult`: `mask_diversity` (masks in place),
    `mask_shape_diversity` (centred masks) and `mask_area_spread`. It raises ValueError with fewer than two masks that
    have a defective pixel.

    >>> metric = MaskDiversity()
    >>> metric.update(torch.eye(4).bool()[None])
    >>> metric.update(torch.eye(4).bool().flip(0)[None])
    >>> metric.compute()["mask_diversity"].item()
    1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    masks: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("masks", [], dist_reduce_fx="cat")

    def update(self, masks: Rows) -> None:
        """Adds masks of one size, bool `[B,1,H,W]` or `[B,H,W]`."""
        batch = torch.as_tensor(masks) != 0
        batch = batch[:, 0] if batch.ndim == 4 and batch.shape[1] == 1 else batch
        if batch.ndim != 3:
            raise ValueError(f"masks: found shape {tuple(batch.shape)}; expected [B,1,H,W] or [B,H,W]")
        self.masks.append(batch.to(self.device, torch.uint8))

    def compute(self) -> dict[str, Tensor]:
        """Returns the three scores as scalar tensors."""
        result = mask_diversity(_concatenated(self.masks).astype(bool) if len(self.masks) else [])
        names = ("mask_diversity", "mask_shape_diversity", "mask_area_spread")
        values = (torch.tensor(value, dtype=torch.float64, device=self.device) for value in result)
        return dict(zip(names, values, strict=True))


class IntraClusterDistance(Metric):
    """Mean pairwise perceptual distance within clusters of generated images: IC-LPIPS with LPIPS embeddings.

    See `intra_cluster_distance` for the definition. The range is 0 (copies) upwards, higher is more diverse. NaN if
    no cluster counts. The state has the embeddings of at most `cap` members per cluster. Which members it has does
    not depend on the batches. Each process of a distributed evaluation chooses its own members.

    Args:
        embed: maps uint8 images `[B,3,H,W]` to embeddings `[B,D]`, a tensor or an array. See
            `features.TensorExtractor` for the networks of this package.
        references: real images, uint8 `[K,3,H,W]`, K at least 1.
        cap: largest number of members of a cluster that are compared, at least 2.
        zero_policy: `drop` ignores a cluster with fewer than two members, `zero` counts it as 0.
        seed: seed of the choice of members.
        **kwargs: see `torchmetrics.Metric`.

    >>> def gray(*values):
    ...     return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    >>> metric = IntraClusterDistance(lambda images: images.float().mean((2, 3)), gray(0, 100))
    >>> metric.update(gray(1, 3, 99))
    >>> metric.compute().item()
    12.0
    """

    full_state_update = True  # the rank of a member depends on the number of images before it
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0

    reference_embeddings: Tensor
    member_embeddings: list[Tensor]
    member_clusters: list[Tensor]
    member_ranks: list[Tensor]
    cluster_sizes: Tensor

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor | NDArray[np.float32]],
        references: Tensor | NDArray[np.uint8],
        cap: int = 50,
        zero_policy: str = "drop",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_settings(len(references), cap, zero_policy)
        self.embed, self.cap, self.zero_policy, self.seed = embed, cap, zero_policy, seed
        self.register_buffer("reference_embeddings", self._embed(references), persistent=False)
        for name in ("member_embeddings", "member_clusters", "member_ranks"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("cluster_sizes", torch.zeros(len(references), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor | NDArray[np.uint8]) -> None:
        """Adds generated images, uint8 `[B,3,H,W]`."""
        if not len(images):
            return
        rows = self._embed(images)
        clusters, ranks = assign_clusters(
            rows.cpu().numpy(), self.reference_embeddings.cpu().numpy(), self.seed, int(self.cluster_sizes.sum())
        )
        self.cluster_sizes += torch.from_numpy(np.bincount(clusters, minlength=len(self.cluster_sizes))).to(self.device)
        clusters = np.concatenate([*(part.cpu().numpy() for part in self.member_clusters), clusters])
        ranks = np.concatenate([*(part.cpu().numpy() for part in self.member_ranks), ranks])
        keep = members_to_keep(clusters, ranks, self.cap)
        old = len(self.member_embeddings)
        # A view of one row would keep the whole batch in memory.
        self.member_embeddings = [
            self.member_embeddings[i] if i < old else rows[i - old : i - old + 1].clone() for i in keep
        ]
        self.member_clusters = [torch.from_numpy(clusters[keep]).to(self.device)]
        self.member_ranks = [torch.from_numpy(ranks[keep]).to(self.device)]

    def compute(self) -> Tensor:
        """Returns the distance of all images, a scalar tensor, NaN if no cluster counts."""
        states = (self.member_embeddings, self.member_clusters, self.member_ranks)
        embeddings, clusters, ranks = (_concatenated(state) if len(state) else np.empty(0) for state in states)
        clusters = clusters.astype(np.int64)
        keep = members_to_keep(clusters, ranks, self.cap)
        sizes = [int(size) for size in self.cluster_sizes]
        value = cluster_result(list(embeddings[keep]), clusters[keep], sizes, self.zero_policy).value
        return torch.tensor(float("nan") if value is None else value, dtype=torch.float64, device=self.device)

    def _embed(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            rows = self.embed(torch.as_tensor(images).to(self.device))
        return torch.as_tensor(rows).float().to(self.device)


def _concatenated(state: Tensor | list[Tensor]) -> NDArray[Any]:
    """The rows of a list state; after a synchronisation it is one tensor."""
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    return torch.cat(state).cpu().numpy() if state else np.empty((0, 1))
