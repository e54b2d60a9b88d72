"""torchmetrics classes over the pixel-level scores: AUROC, AP, F1-max, PRO and IoU.

`update` takes score maps and masks as tensors or arrays `[B,1,H,W]` or `[B,H,W]`, or as sequences of `[H,W]` arrays of
different sizes. A mask value other than 0 is defective. Results are scalar float64 tensors, NaN where undefined.
In a `MetricCollection` the classes that need the same values share one state. torchmetrics compares the states after
the first batch, so two metrics that differ only in their settings need `compute_groups=False`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from defect_core.metrics import binning
from defect_core.metrics.curves import (
    Curve,
    auroc,
    average_precision,
    curve_from_classes,
    f1_max,
    overlap_area,
)
from defect_core.metrics.localisation import (
    PRO_FPR_LIMIT,
    concatenate_parts,
    count_image,
)

Images: TypeAlias = Tensor | NDArray[Any] | Sequence[ArrayLike]
Thresholds: TypeAlias = Literal["binned"] | None


def best_f1(curve: Curve) -> float | None:
    """Returns the highest F1 of a curve, None without a positive."""
    best = f1_max(curve)
    return best and best[0]


class LocalisationMetric(Metric):
    """Base class: reads batches of score maps and masks and adds each image to the states."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, score_maps: Images, masks: Images) -> None:
        """Adds images.

        Args:
            score_maps: finite floats, `[B,1,H,W]`, `[B,H,W]` or a sequence of `[H,W]`.
            masks: bool, of the same shape. All False for a normal image.

        Raises:
            ValueError: shapes that differ, or a score that is not finite.
        """
        for score_map, mask in zip(iterate_images(score_maps), iterate_images(masks), strict=True):
            self._add(np.asarray(score_map, np.float32), np.asarray(mask, bool))

    def compute(self) -> Any:
        """Returns the score over all images, a scalar tensor, NaN if undefined."""
        return self._scalar(self._score(self._curve()))

    @staticmethod
    def _score(curve: Curve) -> float | None:
        raise TypeError("an abstract class has no score; expected a subclass")

    def _curve(self) -> Curve:
        raise TypeError(f"{type(self).__name__} is abstract; expected a subclass")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        raise TypeError(f"{type(self).__name__} is abstract; expected a subclass")

    def _scalar(self, value: float | None) -> Tensor:
        return torch.tensor(float("nan") if value is None else value, dtype=torch.float64, device=self.device)

    def _state(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


class _PixelMetric(LocalisationMetric):
    """Keeps the scores of all pixels, or their counts in bins.

    Args:
        thresholds: None keeps 4 bytes per pixel and is exact. "binned" counts pixels in a million bins, 24 MB for any
            number of images, with an error below 1e-3 (see `binning`).
        **kwargs: see `torchmetrics.Metric`.
    """

    positive: list[Tensor]
    negative: list[Tensor]
    region_area: list[Tensor]
    positive_bins: Tensor
    negative_bins: Tensor
    overlap_bins: Tensor

    def __init__(self, thresholds: Thresholds = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if thresholds not in (None, "binned"):
            raise ValueError(f"thresholds: found {thresholds!r}; expected None or 'binned'")
        self.thresholds = thresholds
        if thresholds is None:
            self.add_state("positive", [], dist_reduce_fx="cat")
            self.add_state("negative", [], dist_reduce_fx="cat")
        else:
            self.add_state("positive_bins", torch.zeros(binning.BINS, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state("negative_bins", torch.zeros(binning.BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        count_image(score_map, mask, window=1)  # raises on a wrong shape or score
        self._add_pixels(score_map, mask, None)

    def _add_pixels(
        self, score_map: NDArray[np.float32], mask: NDArray[np.bool_], area: NDArray[np.float32] | None
    ) -> None:
        if self.thresholds is None:
            self.positive.append(self._state(score_map[mask]))
            self.negative.append(self._state(score_map[~mask]))
            if area is not None:
                self.region_area.append(self._state(area))
            return
        counts = binning.count_bins(score_map, mask, None if area is None else 1.0 / area.astype(np.float64))
        self.positive_bins[counts.bins] += self._state(counts.positive)
        self.negative_bins[counts.bins] += self._state(counts.negative)
        if area is not None:
            self.overlap_bins[counts.bins] += self._state(counts.overlap)

    def _curve(self) -> Curve:
        if self.thresholds is None:
            area = state_values(self.region_area) if "region_area" in self._defaults else None
            negative = state_values(self.negative)
            negative.sort()
            weight = None if area is None else 1.0 / area.astype(np.float64)
            return curve_from_classes(state_values(self.positive), negative, weight)
        positive, negative = state_values(self.positive_bins), state_values(self.negative_bins)
        overlap = state_values(self.overlap_bins) if "overlap_bins" in self._defaults else positive.astype(np.float64)
        return binning.binned_curve(positive, negative, overlap)


class PixelAUROC(_PixelMetric):
    """Area under the receiver operating characteristic over all pixels: 1 is perfect, 0.5 is chance.

    Formula in `curves.auroc`. Range 0..1. Undefined without a defective or without a normal pixel.

    Args:
        thresholds: None is exact. "binned" needs constant memory.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = PixelAUROC()
    >>> metric.update(torch.tensor([[[0.1, 0.4], [0.35, 0.8]]]), torch.tensor([[[0, 0], [1, 1]]]))
    >>> metric.compute().item()
    0.75
    """

    _score = staticmethod(auroc)


class PixelAveragePrecision(_PixelMetric):
    """Average precision over all pixels: sum of (recall_n - recall_(n-1)) * precision_n, without interpolation.

    Range 0..1. Undefined without a defective pixel. Arguments as in `PixelAUROC`.

    >>> metric = PixelAveragePrecision()
    >>> metric.update(torch.tensor([[[0.1, 0.4], [0.35, 0.8]]]), torch.tensor([[[0, 0], [1, 1]]]))
    >>> round(metric.compute().item(), 4)
    0.8333
    """

    _score = staticmethod(average_precision)


class PixelF1Max(_PixelMetric):
    """Highest F1 = 2 TP / (2 TP + FP + FN) over all thresholds, pixels of all images pooled.

    Range 0..1. Undefined without a defective pixel. Arguments as in `PixelAUROC`.

    >>> metric = PixelF1Max()
    >>> metric.update(torch.tensor([[[0.1, 0.4], [0.35, 0.8]]]), torch.tensor([[[0, 0], [1, 1]]]))
    >>> metric.compute().item()
    0.8
    """

    _score = staticmethod(best_f1)


class PerRegionOverlap(_PixelMetric):
    """PRO (AUPRO): the mean recall of the defect regions, integrated over the false positive rate up to a limit.

    PRO = 1/L * integral from 0 to L of the mean recall at false positive rate t, dt (Bergmann et al. 2020, section 4).
    Range 0..1. Undefined without a defect region or without a normal pixel.

    Args:
        fpr_limit: L, in (0, 1].
        connectivity: 8 or 4, of the pixels of a region.
        thresholds: None is exact. "binned" needs constant memory.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = PerRegionOverlap()
    >>> metric.update(torch.tensor([[[0.9, 0.1], [0.1, 0.1]]]), torch.tensor([[[1, 0], [0, 0]]]))
    >>> metric.compute().item()
    1.0
    """

    def __init__(
        self,
        fpr_limit: float = PRO_FPR_LIMIT,
        connectivity: int = 8,
        thresholds: Thresholds = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(thresholds, **kwargs)
        if connectivity not in (4, 8):
            raise ValueError(f"connectivity: found {connectivity}; expected 4 or 8")
        self.fpr_limit, self.connectivity = fpr_limit, connectivity
        if self.thresholds is None:
            self.add_state("region_area", [], dist_reduce_fx="cat")
        else:
            self.add_state("overlap_bins", torch.zeros(binning.BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        self._add_pixels(score_map, mask, count_image(score_map, mask, 1, connectivity=self.connectivity).area)

    def compute(self) -> Any:
        """Returns the score over all images, a scalar tensor, NaN if undefined."""
        return self._scalar(overlap_area(self._curve(), self.fpr_limit))


class IntersectionOverUnion(LocalisationMetric):
    """IoU of {score > threshold} and the masks, pixels of all images pooled: TP / (TP + FP + FN).

    Range 0..1. Undefined without a defective pixel.

    Args:
        threshold: pixels with a higher score are predicted defective.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = IntersectionOverUnion()
    >>> metric.update(torch.tensor([[[0.9, 0.6, 0.1]]]), torch.tensor([[[1, 0, 0]]]))
    >>> metric.compute().item()
    0.5
    """

    intersection: Tensor
    union: Tensor
    defective_images: Tensor

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        for name in ("intersection", "union", "defective_images"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        counts = count_image(score_map, mask, 1, self.threshold)
        self.intersection += counts.intersection
        self.union += counts.union
        self.defective_images += counts.is_defective

    def compute(self) -> Tensor:
        """Returns the score over all images, a scalar tensor, NaN if undefined."""
        return self._scalar(int(self.intersection) / int(self.union) if self.defective_images else None)


def iterate_images(batch: Images) -> Iterator[NDArray[Any]]:
    """Yields the `[H,W]` arrays of a batch."""
    if isinstance(batch, Tensor):
        batch = batch.detach().to("cpu")
        batch = (batch.float() if batch.dtype is torch.bfloat16 else batch).numpy()
    if isinstance(batch, np.ndarray) and batch.ndim not in (3, 4):
        raise ValueError(f"images: found shape {batch.shape}; expected [B,1,H,W] or [B,H,W]")
    for image in batch:
        array = np.asarray(image)
        yield array[0] if array.ndim == 3 and len(array) == 1 else array


def state_values(state: Tensor | list[Tensor]) -> NDArray[Any]:
    """Returns the values of a state.

    A list state is replaced by one tensor, so that the memory holds the values once.
    """
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    if not state:
        return np.empty(0, np.float32)
    parts, device = [part.cpu().numpy() for part in state], state[0].device
    state.clear()
    values = concatenate_parts(parts)
    state.append(torch.from_numpy(values).to(device))
    return values
