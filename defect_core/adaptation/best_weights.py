"""Early stopping: the checks of a training run and the best weights, on disk, so that a killed run can continue."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from defect_core.data.files import write_text
from defect_core.data.guarded import damaged
from defect_core.training.checkpoint import load_checkpoint, save_checkpoint


class BestWeights:
    """The weights with the lowest held-out loss, and the losses of all checks.

    Args:
        folder: where they are stored; an existing record is continued.
        module: whose weights are stored.
        patience: number of checks without a new minimum after which training stops.
        patience_from: checks up to this step do not count for the patience.
        loss: gives the held-out loss before the first step, if there is no record yet.
    """

    def __init__(
        self, folder: Path, module: nn.Module, patience: int, patience_from: int, loss: Callable[[], float]
    ) -> None:
        self._weights, self._record = folder / "best.safetensors", folder / "checks.json"
        self._module, self._patience, self._patience_from = module, patience, patience_from
        self._checks: dict[int, float] = {}
        if self._record.is_file():
            self._checks = {int(step): value for step, value in json.loads(self._record.read_text()).items()}
        else:
            self.check(0, loss())

    def check(self, step: int, loss: float) -> bool:
        """Record a check and return whether training should stop.

        Args:
            step: number of completed steps.
            loss: held-out loss.
        """
        self._checks = {done: value for done, value in self._checks.items() if done < step} | {step: loss}
        best = min(self._checks, key=lambda done: self._checks[done])
        if best == step:
            save_checkpoint(self._weights, self._module.state_dict())
        write_text(self._record, json.dumps(self._checks))
        return sum(done > max(best, self._patience_from) for done in self._checks) >= self._patience

    def restore(self) -> None:
        """Copy the best weights into the module. Raises InputError if their file is missing or damaged."""
        if load_checkpoint(self._weights, self._module.state_dict()) is None:
            raise damaged(self._weights, "the best weights cannot be read")

    def curve(self, losses: list[float]) -> list[dict[str, float | None]]:
        """Return one dict per check: `step`, `loss` (mean training loss since the last check), and `held_out`.

        Args:
            losses: training loss of each step.
        """
        points: list[dict[str, float | None]] = []
        last = 0
        for step, value in sorted(self._checks.items()):
            mean = round(float(np.mean(losses[last:step])), 6) if step else None
            points.append({"step": step, "loss": mean, "held_out": round(value, 6)})
            last = step
        return points
