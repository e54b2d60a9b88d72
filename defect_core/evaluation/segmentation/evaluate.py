"""Testing of a trained segmenter on real images that no training has seen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import Sample
from defect_core.evaluation.segmentation.model import Segmenter
from defect_core.metrics.bootstrap import ImageTables, image_tables
from defect_core.metrics.localisation import localisation_scores, pooling_window

PRO_FPR_LIMIT = 0.3
IOU_THRESHOLD = 0.5


class Evaluation(NamedTuple):
    """`scores`: see `evaluate_segmenter`; `maps`: float32 `[N,S,S]` in 0..1, in the order of the samples; `tables`:
    what each image adds to the scores, for intervals (`metrics.bootstrap`).
    """

    scores: dict
    maps: NDArray[np.float32]
    tables: ImageTables


def evaluate_segmenter(model: Segmenter, samples: Sequence[Sample], image_score: str = "max_of_mean") -> Evaluation:
    """Score the model on test samples (defects and good images).

    Args:
        image_score: how a score map becomes one number: `max_of_mean` (AnomalyDiffusion, DRAEM) takes the highest mean
            of a window, 21 px wide at 256 px; `max` (SeaS) the highest value.

    `scores` holds `pixel_auroc, pixel_ap, pixel_f1_max, pixel_f1_threshold, pro, iou, image_auroc, image_ap,
    image_f1_max` (0..1, 6 digits, or None), `reasons` for each None, and `protocol` (numbers of images, the PRO
    limit, the IoU threshold and the side of the average-pooling window of the image score).

    Raises:
        InputError: no samples.
    """
    if not samples:
        raise InputError("segment: no test image; expected at least one")
    maps = model.predict(np.stack([s.image for s in samples]))
    window = pooling_window(maps.shape[-1]) if image_score == "max_of_mean" else 1
    exact = localisation_scores(maps, [s.mask for s in samples], PRO_FPR_LIMIT, IOU_THRESHOLD, window)
    scores = {k: round(v, 6) if isinstance(v, float) else v for k, v in exact.items()}
    defects = sum(bool(s.mask.any()) for s in samples)
    scores["protocol"] = {
        "defect_images": defects,
        "good_images": len(samples) - defects,
        "image_size": int(maps.shape[-1]),
        "pro_fpr_limit": PRO_FPR_LIMIT,
        "iou_threshold": IOU_THRESHOLD,
        "image_score": f"max of the {window}x{window} average-pooled map" if window > 1 else "max of the map",
    }
    return Evaluation(scores, maps, image_tables(maps, [s.mask for s in samples], window, IOU_THRESHOLD))
