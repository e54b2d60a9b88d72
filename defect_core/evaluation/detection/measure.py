"""Training and testing of an anomaly detector over several seeds, with the scores of the segmenter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.errors import InputError
from defect_core.evaluation.detection.anomalib_models import fit_detector
from defect_core.evaluation.detection.config import DetectorConfig, DetectorName
from defect_core.evaluation.segmentation.data import Sample
from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
from defect_core.evaluation.segmentation.measure import INTERVAL, summarise_evaluations
from defect_core.seeds import training_seed

NO_THRESHOLD = "distances have no natural threshold"


@dataclass(frozen=True)
class DetectorData:
    """Images of one product.

    Attributes:
        real: real normal training images.
        generated: generated normal training images.
        test: test images.
    """

    real: Sequence[Sample]
    generated: Sequence[Sample]
    test: Sequence[Sample]


def measure_detector(
    model: DetectorName,
    config: DetectorConfig,
    data: DetectorData,
    *,
    base_seed: int,
    label: str,
    image_score: str,
    weights_folder: Path,
) -> dict[str, Any]:
    """Train and test one detector per seed.

    Args:
        model: `patchcore` or `draem`.
        config: settings.
        data: images of the product.
        base_seed: seed of the project.
        label: shown with the progress.
        image_score: how a score map becomes one number (see `evaluate_segmenter`).
        weights_folder: folder that `config.weights` may be relative to.

    Returns:
        `model`, the result of `summarise_evaluations`, and `protocol`.

    Raises:
        InputError: no real normal image.
    """
    if not data.real:
        raise InputError(f"{label}: no normal training images; expected at least one")
    images = np.stack([sample.image for sample in (*data.real, *data.generated)])
    results = []
    for number, seed in enumerate(config.seeds):
        shown = f"{model} {label}, seed {seed} ({number + 1}/{len(config.seeds)})"
        detector = fit_detector(images, model, config, training_seed(base_seed, seed), shown, weights_folder)
        result = evaluate_segmenter(detector, data.test, image_score)
        if model == "patchcore":
            result.scores["iou"] = None
            result.scores["reasons"] = {**result.scores["reasons"], "iou": NO_THRESHOLD}
        results.append(result)
    protocol = results[0].scores["protocol"] | {
        "train_normal": len(data.real),
        "generated_normal": len(data.generated),
        "seeds": len(config.seeds),
        "interval": INTERVAL,
    }
    if model == "patchcore":
        protocol["network"] = f"{config.backbone}, stages {list(config.layers)}, weights: {config.weights}"
        protocol["coreset"] = config.coreset
        del protocol["iou_threshold"]
    else:
        protocol |= {"network": "anomalib's DRAEM", "steps": config.steps, "batch_size": config.batch_size}
    return {"model": model, **summarise_evaluations(config.seeds, results, base_seed), "protocol": protocol}
