"""torchmetrics classes over the image-level scores, and `LocalisationScores`, all localisation scores in one class.

Inputs and results are those of `pixel_metrics`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.metrics.curves import Curve, auroc, average_precision, ranking_curve
from defect_core.metrics.localisation import PRO_FPR_LIMIT, ImageCounts, count_image, scores_from_curves
from defect_core.metrics.pixel_metrics import LocalisationMetric, PerRegionOverlap, Thresholds, best_f1, state_values


class _ImageMetric(LocalisationMetric):
    """Keeps the image score (see `localisation.image_score`) and the label of each image.

    Args:
        window: side of the pooling window in pixels. 1 is the maximum. None scales 21 at 256 px to the map.
        **kwargs: see `torchmetrics.Metric`.
    """

    image_score: list[Tensor]
    image_label: list[Tensor]

    def __init__(self, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = window
        self.add_state("image_score", [], dist_reduce_fx="cat")
        self.add_state("image_label", [], dist_reduce_fx="cat")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        _append_image(self, count_image(score_map, mask, self.window))

    def _curve(self) -> Curve:
        return ranking_curve(state_values(self.image_score), state_values(self.image_label))


class ImageAUROC(_ImageMetric):
    """Area under the receiver operating characteristic over images. An image is positive if its mask is not empty.

    Range 0..1. Undefined without a defective or without a normal image.

    Args:
        window: side of the pooling window of the image score in pixels. 1 is the maximum.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = ImageAUROC(window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.2, 0.1]]]), torch.tensor([[[1, 0]], [[0, 0]]]))
    >>> metric.compute().item()
    1.0
    """

    _score = staticmethod(auroc)


class ImageAveragePrecision(_ImageMetric):
    """Average precision over images. See `ImageAUROC` for labels and arguments.

    Range 0..1. Undefined without a defective image.

    >>> metric = ImageAveragePrecision(window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.95, 0.1]]]), torch.tensor([[[1, 0]], [[0, 0]]]))
    >>> metric.compute().item()
    0.5
    """

    _score = staticmethod(average_precision)


class ImageF1Max(_ImageMetric):
    """Highest F1 over all thresholds of the image score. See `ImageAUROC` for labels and arguments.

    Range 0..1. Undefined without a defective image.

    >>> metric = ImageF1Max(window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.2, 0.1]]]), torch.tensor([[[1, 0]], [[0, 0]]]))
    >>> metric.compute().item()
    1.0
    """

    _score = staticmethod(best_f1)


class LocalisationScores(PerRegionOverlap):
    """All localisation scores from one state and one sort: faster than a collection of the single classes.

    `compute` returns a dict of scalar tensors with the names of `localisation.localisation_scores`, NaN if undefined.
    With `thresholds="binned"` it adds `pixel_auroc_error_bound`.

    Args:
        fpr_limit: upper bound of the false positive rate in PRO.
        iou_threshold: pixels with a higher score are predicted defective for `iou`.
        window: side of the pooling window of the image score in pixels. None scales 21 at 256 px to the map.
        connectivity: 8 or 4, of the pixels of a region.
        thresholds: None is exact. "binned" needs constant memory.
        **kwargs: see `torchmetrics.Metric`.

    >>> metric = LocalisationScores(window=1)
    >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.2, 0.1]]]), torch.tensor([[[1, 0]], [[0, 0]]]))
    >>> scores = metric.compute()
    >>> scores["pixel_ap"].item(), scores["pro"].item(), scores["image_auroc"].item()
    (1.0, 1.0, 1.0)
    """

    image_score: list[Tensor]
    image_label: list[Tensor]
    intersection: Tensor
    union: Tensor

    def __init__(
        self,
        fpr_limit: float = PRO_FPR_LIMIT,
        iou_threshold: float = 0.5,
        window: int | None = None,
        connectivity: int = 8,
        thresholds: Thresholds = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(fpr_limit, connectivity, thresholds, **kwargs)
        self.iou_threshold, self.window = iou_threshold, window
        self.add_state("image_score", [], dist_reduce_fx="cat")
        self.add_state("image_label", [], dist_reduce_fx="cat")
        for name in ("intersection", "union"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, score_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        counts = count_image(score_map, mask, self.window, self.iou_threshold, self.connectivity)
        self._add_pixels(score_map, mask, counts.area)
        _append_image(self, counts)
        self.intersection += counts.intersection
        self.union += counts.union

    def compute(self) -> dict[str, Tensor]:
        """Returns all scores over all images, NaN if undefined."""
        pixel = self._curve()
        image = ranking_curve(state_values(self.image_score), state_values(self.image_label))
        scores = scores_from_curves(pixel, image, int(self.intersection), int(self.union), self.fpr_limit)
        del scores["reasons"]
        if self.thresholds is not None:
            scores["pixel_auroc_error_bound"] = pixel.tied_fraction / 2
        return {name: self._scalar(value) for name, value in scores.items()}


def _append_image(metric: _ImageMetric | LocalisationScores, counts: ImageCounts) -> None:
    metric.image_score.append(torch.tensor([counts.score], dtype=torch.float64, device=metric.device))
    metric.image_label.append(torch.tensor([counts.is_defective], dtype=torch.float64, device=metric.device))
