"""Testing of a trained segmenter or detector on real images that no training has used."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import Sample
from defect_core.metrics.bootstrap import ImageTables, image_tables
from defect_core.metrics.localisation import PRO_FPR_LIMIT, localisation_scores, pooling_window
from defect_core.metrics.operating_point import OperatingPoint

IOU_THRESHOLD = 0.5  # Of a probability.


class ScoreMapModel(Protocol):
    """A model that computes score maps, such as a segmenter or a detector."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return score maps `[N,S,S]` of images `[N,S,S,3]`, higher where a defect is more likely."""
        ...


class Evaluation(NamedTuple):
    """Test result of one model.

    Attributes:
        scores: see `evaluate_segmenter`.
        maps: score maps, float32 `[S,S]` each, in the order of the samples. Those of tiled evaluation are reduced.
        tables: counts of each image, from which `metrics.bootstrap` computes intervals.
        thresholds: thresholds of the model by overkill target (see `thresholds.target_key`); empty without them.
    """

    scores: dict[str, Any]
    maps: Sequence[NDArray[np.float32]] | NDArray[np.float32]
    tables: ImageTables
    thresholds: Mapping[str, OperatingPoint] = MappingProxyType({})


# Receives each score map `[H,W]`, at full size, with its sample.
Observer = Callable[[NDArray[np.float32], Sample], None]


def evaluate_segmenter(
    model: ScoreMapModel,
    samples: Sequence[Sample],
    image_score: str = "max_of_mean",
    observe: Observer | None = None,
) -> Evaluation:
    """Compute the scores of a model on test samples.

    Args:
        model: segmenter or detector.
        samples: test images, normal ones and ones with defects.
        image_score: how a score map becomes one number. `max_of_mean` (AnomalyDiffusion, DRAEM): the maximum of the
            means over windows, 21 px wide at 256 px. `max` (SeaS): the maximum of the map.
        observe: called with each score map and its sample.

    Returns:
        The evaluation. Its `scores` are `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_f1_threshold`, `pro`, `iou`,
        `image_auroc`, `image_ap` and `image_f1_max`, each 0 to 1 with six digits or None. `reasons` has a line for each
        None. `protocol` has the numbers of images and the parameters of the scores.

    Raises:
        InputError: no samples.
    """
    if not samples:
        raise InputError("segment: no test image; expected at least one")
    maps = model.predict(np.stack([s.image for s in samples]))
    if observe is not None:
        for score_map, sample in zip(maps, samples, strict=True):
            observe(score_map, sample)
    window = score_window(maps.shape[-1], image_score)
    exact = localisation_scores(maps, [s.mask for s in samples], PRO_FPR_LIMIT, IOU_THRESHOLD, window)
    scores = {k: round(v, 6) if isinstance(v, float) else v for k, v in exact.items()}
    defects = sum(bool(s.mask.any()) for s in samples)
    scores["protocol"] = {
        "defect_images": defects,
        "normal_images": len(samples) - defects,
        "image_size": int(maps.shape[-1]),
        "pro_fpr_limit": PRO_FPR_LIMIT,
        "iou_threshold": IOU_THRESHOLD,
        "image_score": describe_image_score(window),
    }
    return Evaluation(scores, maps, image_tables(list(maps), [s.mask for s in samples], window, IOU_THRESHOLD))


def score_window(side: int, image_score: str) -> int:
    """Return the side of the pooling window of an image score in pixels; 1 for `max`.

    Args:
        side: side of the map in pixels, or of a tile.
        image_score: `max_of_mean` or `max`.
    """
    return pooling_window(side) if image_score == "max_of_mean" else 1


def describe_image_score(window: int) -> str:
    """Return what the protocol says about the image score with this pooling window."""
    return f"max of the {window}x{window} average-pooled map" if window > 1 else "max of the map"
