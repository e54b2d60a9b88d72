"""Scores of a classifier's predictions on real test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.spread import interval_of

RESAMPLES = 400

Labels = NDArray[np.int64]


def score_predictions(truth: Labels, predicted: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """Return the scores of one classifier.

    Args:
        truth: true labels `[N]`.
        predicted: predicted labels `[N]`.
        classes: names of the defect types.

    Returns:
        `accuracy`, `balanced_accuracy` (mean recall of the defect types with test images) and `recall_<type>`, each 0
        to 1 with six digits or None. `reasons` has a line for each None. `confusion` has the counts
        `[true][predicted]`.

    >>> scores = score_predictions(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["dent", "hole"])
    >>> scores["accuracy"], scores["recall_dent"], scores["confusion"]
    (0.75, 0.5, [[1, 1], [0, 2]])
    """
    count = len(classes)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (truth, predicted), 1)
    scores: dict[str, Any] = {"reasons": {}}
    values = _scores(confusion.astype(float)[None], classes)
    for name, value in values.items():
        scores[name] = round(float(value[0]), 6) if np.isfinite(value[0]) else None
        if scores[name] is None:
            defect = name.removeprefix("recall_")
            scores["reasons"][name] = f"no test image of {defect}" if defect != name else "no test image"
    return {**scores, "confusion": confusion.tolist()}


def prediction_intervals(
    truth: Labels, predictions: Sequence[Labels], classes: Sequence[str], seed: int, level: float = 0.95
) -> dict[str, list[float] | None]:
    """Return bootstrap intervals of the mean over seeds: test images are resampled with replacement.

    Args:
        truth: true labels `[N]`.
        predictions: predicted labels `[N]` of each seed.
        classes: names of the defect types.
        seed: seed of the bootstrap.
        level: fraction of the resamples inside the interval.

    Returns:
        [low, high] by score; None if at most half of the resamples define it. Empty without test images.
    """
    if not len(truth):
        return {}
    count = len(classes)
    weights = np.random.default_rng(seed).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), RESAMPLES)
    resampled = []
    for predicted in predictions:
        cells = np.zeros((len(truth), count * count))
        cells[np.arange(len(truth)), truth * count + predicted] = 1
        resampled.append(_scores((weights @ cells).reshape(RESAMPLES, count, count), classes))
    return {name: interval_of(np.mean([scores[name] for scores in resampled], axis=0), level) for name in resampled[0]}


def _scores(confusion: NDArray[np.float64], classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return all scores of confusion matrices `[R,K,K]`, NaN if undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        correct = np.diagonal(confusion, axis1=1, axis2=2)
        rows = confusion.sum(2)
        recalls = correct / rows
        is_tested = rows > 0
        balanced = np.where(is_tested, recalls, 0).sum(1) / is_tested.sum(1)
        scores = {"accuracy": correct.sum(1) / confusion.sum((1, 2)), "balanced_accuracy": balanced}
    return scores | {f"recall_{name}": recalls[:, number] for number, name in enumerate(classes)}
