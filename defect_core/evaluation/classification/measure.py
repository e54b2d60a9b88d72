"""Training and testing of the classifier of one arm over several seeds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.evaluation.batches import compute_synthetic_fraction, hold_out
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import View
from defect_core.evaluation.classification.evaluate import prediction_intervals, score_predictions
from defect_core.evaluation.classification.train import Classifier, train_classifier
from defect_core.evaluation.segmentation.measure import INTERVAL
from defect_core.metrics.spread import over_seeds
from defect_core.seeds import training_seed


@dataclass(frozen=True)
class ClassifierData:
    """Views of one arm.

    Attributes:
        classes: names of the defect types; the label of a view is an index into it.
        real: views of real training images.
        synthetic: views of synthetic images.
        test: views of test images.
    """

    classes: list[str]
    real: list[View]
    synthetic: list[View]
    test: list[View]


@dataclass
class ClassifierRuns:
    """What the trainings of all seeds produced.

    Attributes:
        result: scores and protocol, for the metrics file.
        predictions: per seed `seed`, `truth` and `predicted` labels of the test images.
        curves: per seed `seed` and the `points` of the training curve.
        first_model: the model of the first seed.
    """

    result: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    first_model: Classifier | None = None


def undefined_result(product: str, classes: Sequence[str]) -> dict[str, Any]:
    """Return the result for a product with fewer than two defect types; published tables leave such products out."""
    reason = f"{product} has {len(classes)} defect type(s) to train on; expected at least 2"
    names = ("accuracy", "balanced_accuracy")
    return {
        "mean": dict.fromkeys(names),
        "std": dict.fromkeys(names),
        "per_seed": [],
        "protocol": {},
        "interval": dict.fromkeys(names),
        "reasons": dict.fromkeys(names, reason),
    }


def measure_classifier(
    data: ClassifierData, config: ClassifierConfig, base_seed: int, label: str, weights: Path | None, device: str
) -> ClassifierRuns:
    """Train and test one classifier per seed.

    Args:
        data: views of the arm.
        config: settings.
        base_seed: seed of the project.
        label: shown with the progress.
        weights: file with initial weights; None: random.
        device: torch device.
    """
    runs = ClassifierRuns()
    truth = np.array([view.label for view in data.test], int)
    pixels = np.stack([view.image for view in data.test]) if data.test else None
    last: list[NDArray[np.int64]] = []
    best: list[NDArray[np.int64]] = []
    for number, seed in enumerate(config.seeds):
        trained = train_classifier(
            data.real,
            data.synthetic,
            len(data.classes),
            config,
            training_seed(base_seed, seed),
            weights,
            f"classifier {label}, seed {seed} ({number + 1}/{len(config.seeds)})",
            device,
        )
        runs.curves.append({"seed": seed, "points": trained.curve})
        for predictions, model in ((last, trained.model), (best, trained.best)):
            if model is not None:
                predictions.append(truth[:0] if pixels is None else model.predict(pixels).argmax(1))
        runs.predictions.append({"seed": seed, "truth": truth.tolist(), "predicted": last[-1].tolist()})
        runs.first_model = runs.first_model or trained.model
    runs.result = _summarise(config, truth, last, data.classes, base_seed)
    runs.result["protocol"] = _protocol(data, config, truth, weights)
    if len(best) == len(last):
        runs.result["best_on_validation"] = _summarise(config, truth, best, data.classes, base_seed)
    return runs


def _protocol(
    data: ClassifierData, config: ClassifierConfig, truth: NDArray[np.int64], weights: Path | None
) -> dict[str, Any]:
    """Return the numbers and settings behind the scores."""
    training = len(hold_out(data.real, config.validation_fraction)[0])
    fraction = compute_synthetic_fraction(config.synthetic_fraction, training, len(data.synthetic))
    source = "none"
    if weights is not None:
        source = f"{config.weights}, sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}"
    return {
        "train_defects": len(data.real),
        "validation_defects": len(data.real) - training,
        "synthetic": len(data.synthetic),
        "synthetic_fraction": round(fraction, 4),
        "defect_images": {name: int((truth == number).sum()) for number, name in enumerate(data.classes)},
        "normal_images": "none, in training and in test",
        "image_size": config.image_size,
        "view": "whole images" if config.view == "image" else "squares around the true masks, of test images too",
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seeds": len(config.seeds),
        "network": f"{config.architecture}, weights: {source}",
        "model": "of the last step",
        "interval": INTERVAL,
    }


def _summarise(
    config: ClassifierConfig,
    truth: NDArray[np.int64],
    predictions: list[NDArray[np.int64]],
    classes: Sequence[str],
    base_seed: int,
) -> dict[str, Any]:
    scores = [score_predictions(truth, predicted, classes) for predicted in predictions]
    summary = over_seeds(scores)
    intervals = prediction_intervals(truth, predictions, classes, base_seed)
    return {
        **summary._asdict(),
        "interval": {name: None if value is None else intervals.get(name) for name, value in summary.mean.items()},
        "per_seed": [{"seed": seed, **score} for seed, score in zip(config.seeds, scores, strict=True)],
    }
