"""What a classifier's answers on real test images are worth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.spread import interval_of

DRAWS = 400

Labels = NDArray[np.int64]


def score_predictions(truth: Labels, answers: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of one classifier.

    Args:
        truth, answers: numbers of the true and the answered type, `[N]` each.
        classes: names of the types.

    Returns:
        `accuracy`, `balanced_accuracy` (mean of the recalls of the types that are tested), `recall_<type>` each 0 to
        1 with six digits or None, `reasons` for each None, and `confusion`, counts `[true][answered]`.

    >>> found = score_predictions(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["dent", "hole"])
    >>> found["accuracy"], found["recall_dent"], found["confusion"]
    (0.75, 0.5, [[1, 1], [0, 2]])
    """
    count = len(classes)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (truth, answers), 1)
    scores: dict[str, Any] = {"reasons": {}}
    values = _scores(confusion.astype(float)[None], classes)
    for name, value in values.items():
        scores[name] = round(float(value[0]), 6) if np.isfinite(value[0]) else None
        if scores[name] is None:
            named = name.removeprefix("recall_")
            scores["reasons"][name] = f"no test image of {named}" if named != name else "no test image"
    return {**scores, "confusion": confusion.tolist()}


def prediction_intervals(
    truth: Labels, answers: Sequence[Labels], classes: Sequence[str], seed: int, level: float = 0.95
) -> dict[str, list[float] | None]:
    """Intervals of the mean over seeds, test images drawn with replacement.

    Args:
        truth: `[N]`; answers: one `[N]` per seed.
        seed: decides the draws.
        level: what part of the draws the interval holds.

    Returns:
        [low, high] by score; None where fewer than half of the draws define it.
    """
    if not len(truth):
        return {}
    count = len(classes)
    weights = np.random.default_rng(seed).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), DRAWS)
    found = []
    for given in answers:
        cells = np.zeros((len(truth), count * count))
        cells[np.arange(len(truth)), truth * count + given] = 1
        found.append(_scores((weights @ cells).reshape(DRAWS, count, count), classes))
    return {name: interval_of(np.mean([scores[name] for scores in found], axis=0), level) for name in found[0]}


def _scores(confusion: NDArray[np.float64], classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Every score of confusions `[R,K,K]`, NaN where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.diagonal(confusion, axis1=1, axis2=2)
        rows = confusion.sum(2)
        recalls = right / rows
        tested = rows > 0
        balanced = np.where(tested, recalls, 0).sum(1) / tested.sum(1)
        scores = {"accuracy": right.sum(1) / confusion.sum((1, 2)), "balanced_accuracy": balanced}
    return scores | {f"recall_{name}": recalls[:, number] for number, name in enumerate(classes)}
