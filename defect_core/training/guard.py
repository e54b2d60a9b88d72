"""The numerical guard of training: the first value that is not finite ends the training, and says where."""

from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from defect_core.errors import NonFiniteError

CHECK_EVERY = 25
"""Steps between two checks on an accelerator, where a check waits for the device. On a CPU every step is checked."""
_MAX_NAMES = 12
_batch: ContextVar[list[str] | None] = ContextVar("batch", default=None)


def note_batch(names: Iterable[str]) -> None:
    """Record which images the loss of the current step is computed from; the guard names them in its error."""
    noted = _batch.get()
    if noted is not None:
        noted.extend(names)


class FiniteGuard:
    """Checks the losses and gradients of a training run.

    Args:
        label: the training run, in messages.
        device: device of the losses.
        last_checkpoint: step of the checkpoint that the run was resumed from; 0: none.
    """

    def __init__(self, label: str, device: torch.device, last_checkpoint: int = 0) -> None:
        self.label, self.last_checkpoint = label, last_checkpoint
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._recent: deque[tuple[int, list[str], dict[str, Tensor]]] = deque()

    def begin_step(self) -> None:
        """Forget the images of the step before."""
        _batch.set([])

    def end_step(self, step: int, **values: Tensor | None) -> None:
        """Record the values of a step, scalar tensors such as the loss, and check them when it is time.

        Raises:
            NonFiniteError: a recorded value is not finite.
        """
        found = {name: value.detach() for name, value in values.items() if value is not None}
        self._recent.append((step, list(_batch.get() or ()), found))
        if len(self._recent) >= self._every:
            self.check()

    def check(self) -> None:
        """Check all values that are not yet checked.

        Raises:
            NonFiniteError: the first value that is not finite, with its step, its images and the last checkpoint.
        """
        recorded = [value.float().reshape(()) for _, _, values in self._recent for value in values.values()]
        if recorded and not bool(torch.isfinite(torch.stack(recorded)).all()):
            self._raise_first()
        self._recent.clear()

    def check_weights(self, parameters: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Check the weights before they are saved or used.

        Raises:
            NonFiniteError: a weight is not finite.
        """
        self.check()
        name = first_non_finite(parameters)
        if name is not None:
            raise NonFiniteError(f"{self.label}: the weight {name} is not finite after step {step}; {self._cure()}")

    def _raise_first(self) -> None:
        for step, names, values in self._recent:
            for name, value in values.items():
                if not bool(torch.isfinite(value).all()):
                    raise NonFiniteError(
                        f"{self.label}: the {name.replace('_', ' ')} is {float(value):g} at step {step + 1}"
                        f"{_describe_images(names)}; {self._cure()}"
                    )

    def _cure(self) -> str:
        kept = f"the checkpoint of step {self.last_checkpoint} is kept" if self.last_checkpoint else "no checkpoint yet"
        return f"{kept}; lower the learning rate in params.yaml, or look at these images"


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first floating-point tensor with a value that is not finite; None if all are finite."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return None
    flags = torch.stack([torch.isfinite(tensor.detach()).all().cpu() for _, tensor in named])
    return None if bool(flags.all()) else named[int((~flags).nonzero()[0])][0]


def check_module(module: nn.Module, label: str) -> None:
    """Raise NonFiniteError if a weight of a module is not finite."""
    name = first_non_finite(module.state_dict().items())
    if name is not None:
        raise NonFiniteError(f"{label}: the weight {name} is not finite; lower the learning rate in params.yaml")


def _describe_images(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f" (images: {', '.join(names[:_MAX_NAMES])}{more})"
