"""torchmetrics classes over the inspector's figures at one threshold: escapes, overkill, and recall of defect regions.

Inputs are those of `pixel_metrics`; the hit rule is that of `inspection`. A threshold comes from
`operating_point.overkill_threshold`, with scores of images that are not tested. Results are scalar float64 tensors
or, by bin, `[bins]`, NaN where undefined. `interval` of the rates is the Wilson interval (see `wilson_interval`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from defect_core.metrics.inspection import RegionOutcomes, bin_of, match_regions, wilson_interval
from defect_core.metrics.localisation import count_image, pooling_window
from defect_core.metrics.pixel_metrics import Images, LocalisationMetric, iterate_images


class _ThresholdMetric(LocalisationMetric):
    """Counts events among items at a threshold.

    Args:
        threshold: of the image score; an image with a higher score is rejected.
        window: side of the pooling window of the image score in pixels. 1 is the maximum. None scales 21 at 256 px.
        **kwargs: see `torchmetrics.Metric`.
    """

    # Names of the states that count events and items. They differ between classes, because a `MetricCollection` merges
    # metrics whose states have equal names and values.
    _counts: tuple[str, ...] = ()

    def __init__(self, threshold: float, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.window = threshold, window
        for name in self._counts:
            self.add_state(name, torch.zeros(self._bins(), dtype=torch.int64).squeeze(), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Returns the rate over all images, NaN without an item."""
        events, items = (getattr(self, name).double() for name in self._counts)
        return events / items

    def interval(self, level: float = 0.95) -> Tensor:
        """Returns the Wilson interval of the rate, `[2]` or `[bins,2]`, NaN without an item."""
        events, items = (getattr(self, name) for name in self._counts)
        pairs = zip(events.reshape(-1).tolist(), items.reshape(-1).tolist(), strict=True)
        ends = [wilson_interval(count, total, level) or [float("nan")] * 2 for count, total in pairs]
        return torch.tensor(ends, dtype=torch.float64, device=self.device).reshape(*items.shape, 2)

    def _count(self, events: ArrayLike, items: ArrayLike) -> None:
        """Adds numbers of events and of items to the states."""
        for name, value in zip(self._counts, (events, items), strict=True):
            state = getattr(self, name)
            setattr(self, name, state + torch.as_tensor(np.asarray(value, np.int64)).to(state))

    def _bins(self) -> int:
        return 1

    def _window(self, shape: tuple[int, ...]) -> int:
        return self.window or pooling_window(min(shape))

    def _match(
        self, score_map: NDArray[np.float32], mask: NDArray[np.bool_], image: ArrayLike | None = None
    ) -> RegionOutcomes:
        count_image(score_map, mask, window=1)  # raises on a wrong shape or score
        return match_regions(score_map, mask, self.threshold, self._window(mask.shape), image)


class EscapeRate(_ThresholdMetric):
    """Fraction of the defective images that are not rejected: their image score is at most the threshold.

    Range 0..1, lower is better. Undefined without a defective image. Arguments as in `Overkill`.

    >>> metric = EscapeRate(threshold=0.5, window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.2, 0.1]]]), torch.tensor([[[1, 0]], [[1, 0]]]))
    >>> metric.compute().item()
    0.5
    """

    _counts = ("escaped", "defective")
    higher_is_better = False

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        counts = count_image(score_map, mask, self._window(mask.shape))
        self._count(counts.is_defective and counts.score <= self.threshold, counts.is_defective)


class Overkill(_ThresholdMetric):
    """Fraction of the normal images that are rejected: their image score is above the threshold.

    Range 0..1, lower is better. Undefined without a normal image.

    Args:
        threshold: of the image score.
        window: side of the pooling window of the image score in pixels. 1 is the maximum. None scales 21 at 256 px.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = Overkill(threshold=0.5, window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.2, 0.1]]]), torch.zeros(2, 1, 2))
    >>> metric.compute().item(), [round(end, 3) for end in metric.interval().tolist()]
    (0.5, [0.095, 0.905])
    """

    _counts = ("rejected", "normal")
    higher_is_better = False

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        counts = count_image(score_map, mask, self._window(mask.shape))
        self._count(not counts.is_defective and counts.score > self.threshold, not counts.is_defective)


class RegionRecall(_ThresholdMetric):
    """Fraction of the defect regions that are found (see the hit rule of `inspection`).

    Range 0..1. Undefined without a region. Arguments as in `Overkill`.

    >>> metric = RegionRecall(threshold=0.5, window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1, 0.1]]]), torch.tensor([[[1, 0, 1]]]))
    >>> metric.compute().item()
    0.5
    """

    _counts = ("found", "regions")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        found = self._match(score_map, mask).is_found
        self._count(found.sum(), len(found))


class FalseRegionsPerImage(_ThresholdMetric):
    """Mean number per image, normal or defective, of predicted regions without a defect pixel.

    At least 0, lower is better. Undefined without an image. Arguments as in `Overkill`.

    >>> metric = FalseRegionsPerImage(threshold=0.5, window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1, 0.8]], [[0.1, 0.7, 0.1]]]), torch.tensor([[[1, 0, 0]], [[0, 0, 0]]]))
    >>> metric.compute().item()
    1.0
    """

    _counts = ("false_regions", "images")
    higher_is_better = False
    plot_upper_bound = None

    def interval(self, level: float = 0.95) -> Tensor:
        """Raises TypeError: the number of regions is not a rate."""
        raise TypeError("FalseRegionsPerImage is not a rate; expected a bootstrap over images instead of an interval")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        self._count(self._match(score_map, mask).false_regions, 1)


class RecallBySize(_ThresholdMetric):
    """Fraction of the defect regions that are found, by their area: `[bins]`, smallest first.

    Args:
        threshold: of the image score.
        edges: rising areas in pixels of the mask; a region with more than i of them below its area is in bin i.
        window: side of the pooling window of the image score in pixels. 1 is the maximum. None scales 21 at 256 px.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = RecallBySize(threshold=0.5, edges=[1], window=1)
    >>> metric.update(torch.tensor([[[0.1, 0.1, 0.9, 0.9]]]), torch.tensor([[[1, 0, 1, 1]]]))
    >>> metric.compute().tolist()
    [0.0, 1.0]
    """

    _counts = ("found_by_size", "regions_by_size")

    def __init__(self, threshold: float, edges: Sequence[float], window: int | None = None, **kwargs: Any) -> None:
        self.edges = _check_edges(edges)
        super().__init__(threshold, window, **kwargs)

    def _bins(self) -> int:
        return len(self.edges) + 1

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        regions = self._match(score_map, mask)
        self._count_bins(bin_of(regions.area, self.edges), regions.is_found)

    def _count_bins(self, bins: NDArray[np.int64], is_found: NDArray[np.bool_]) -> None:
        known, size = bins >= 0, self._bins()
        self._count(*(np.bincount(bins[chosen], minlength=size) for chosen in (known & is_found, known)))


class RecallByContrast(RecallBySize):
    """Fraction of the defect regions that are found, by their contrast (see `inspection.region_contrast`): `[bins]`.

    `update` takes the images, too. The lowest contrast is first. Regions without a pixel around them are left out.

    Args:
        threshold: of the image score.
        edges: rising contrasts in grey levels.
        window: side of the pooling window of the image score in pixels. 1 is the maximum. None scales 21 at 256 px.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = RecallByContrast(threshold=0.5, edges=[10.0], window=1)
    >>> images = np.array([[[[0] * 3, [5] * 3, [0] * 3, [0] * 3]]], np.uint8)
    >>> metric.update(torch.tensor([[[0.1, 0.9, 0.1, 0.1]]]), torch.tensor([[[0, 1, 0, 0]]]), images)
    >>> metric.compute().tolist()
    [1.0, nan]
    """

    _counts = ("found_by_contrast", "regions_by_contrast")

    def update(self, score_maps: Images, masks: Images, images: Tensor | Sequence[ArrayLike]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds images.

        Args:
            score_maps: finite floats, `[B,1,H,W]`, `[B,H,W]` or a sequence of `[H,W]`.
            masks: bool, of the same shape. All False for a normal image.
            images: 0..255, a tensor `[B,3,H,W]` or arrays `[H,W,3]`.

        Raises:
            ValueError: shapes that differ, or a score that is not finite.
        """
        pictures = images.detach().cpu().permute(0, 2, 3, 1).numpy() if isinstance(images, Tensor) else images
        for score_map, mask, image in zip(iterate_images(score_maps), iterate_images(masks), pictures, strict=True):
            regions = self._match(np.asarray(score_map, np.float32), np.asarray(mask, bool), image)
            self._count_bins(bin_of(regions.contrast, self.edges), regions.is_found)


class SmallestDefectFound(_ThresholdMetric):
    """Area in pixels of the smallest defect region that is found.

    At least 1, lower is better. Undefined if none is found. A single region decides, so read it beside `RecallBySize`.
    Arguments as in `Overkill`.

    >>> metric = SmallestDefectFound(threshold=0.5, window=1)
    >>> metric.update(torch.tensor([[[0.1, 0.1, 0.9, 0.9]]]), torch.tensor([[[1, 0, 1, 1]]]))
    >>> metric.compute().item()
    2.0
    """

    _counts = ()
    higher_is_better = False
    plot_lower_bound = None
    plot_upper_bound = None
    smallest: Tensor

    def __init__(self, threshold: float, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(threshold, window, **kwargs)
        self.add_state("smallest", torch.tensor(float("inf"), dtype=torch.float64), dist_reduce_fx="min")

    def compute(self) -> Tensor:
        """Returns the area, a scalar tensor, NaN if no region is found."""
        return torch.where(torch.isinf(self.smallest), torch.nan, self.smallest)

    def interval(self, level: float = 0.95) -> Tensor:
        """Raises TypeError: an area is not a rate."""
        raise TypeError("SmallestDefectFound is not a rate; expected a bootstrap over images instead of an interval")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        regions = self._match(score_map, mask)
        found = regions.area[regions.is_found]
        if len(found):
            self.smallest = torch.minimum(self.smallest, self.smallest.new_tensor(float(found.min())))


def _check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(edge) for edge in edges)
    if not values or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"edges: found {list(edges)}; expected rising numbers, at least one")
    return values
