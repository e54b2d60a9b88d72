"""The training loop of the segmenter and of the classifier."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor, nn, optim

from defect_core.progress import track
from defect_core.training.guard import FiniteGuard

CURVE_POINTS = 10
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Validation:
    """How a model is scored during its training.

    Attributes:
        name: name of the score in the training curve.
        score: returns the score on the held-out images, higher is better; None if it is undefined.
    """

    name: str
    score: Callable[[], float | None]


@dataclass(frozen=True)
class TrainedModel(Generic[ModelT]):
    """A trained downstream model.

    Attributes:
        model: model of the last step, in eval mode.
        curve: for each point `step` (from 1), `loss` (mean since the previous point), and the validation score.
        best: model of the point with the highest validation score (the first of equal ones), in eval mode; None
            without validation. No test image influences this choice.
    """

    model: ModelT
    curve: list[dict[str, Any]]
    best: ModelT | None = None


def train_model(
    model: ModelT,
    losses: Iterable[Tensor],
    optimiser: optim.Optimizer,
    *,
    steps: int,
    label: str,
    scheduler: optim.lr_scheduler.LRScheduler | None = None,
    validation: Validation | None = None,
) -> TrainedModel[ModelT]:
    """Train a model and return it with its training curve.

    Args:
        model: model in training mode.
        losses: yields the loss of each batch, computed with the weights of that moment.
        optimiser: optimiser of the model's parameters.
        steps: number of losses.
        label: shown with the progress.
        scheduler: advanced after each step.
        validation: scores the model at each of the `CURVE_POINTS` points of the curve.

    Raises:
        NonFiniteError: a loss or a weight is not finite.
    """
    points = {steps * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)}
    curve: list[dict[str, Any]] = []
    values: list[float] = []
    best: ModelT | None = None
    best_score = float("-inf")
    guard = FiniteGuard(label, next(model.parameters()).device)
    guard.begin_step()
    for step, loss in enumerate(track(losses, label, total=steps), start=1):
        guard.end_step(step - 1, loss=loss)
        guard.begin_step()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
        values.append(loss.item())
        if step not in points:
            continue
        point: dict[str, Any] = {"step": step, "loss": round(float(np.mean(values)), 5)}
        values = []
        score = None if validation is None else validation.score()
        if validation is not None and score is not None:
            point[validation.name] = round(score, 5)
            if best is None or score > best_score:
                best, best_score = copy.deepcopy(model).eval(), score
        curve.append(point)
        model.train()
    guard.check_weights(model.state_dict().items(), steps)
    return TrainedModel(model.eval(), curve, best)
