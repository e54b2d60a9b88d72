"""The training loop: accelerate for the device, AdamW and Muon, checkpoints, exact resume.

The randomness of step i comes from a generator seeded with (seed, i). A run that is killed and started again therefore
ends with the same weights as an uninterrupted run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defect_core.progress import track
from defect_core.training.checkpoint import allocate_moments, load_checkpoint, optimizer_state, save_checkpoint
from defect_core.training.muon import Muon, select_hidden_weights

MUON_EVERY, MUON_MOMENTUM = 2, 0.9  # see `Muon`; found by our own trials (docs/research/trials.md)

Loss = Callable[[int, torch.Generator], Tensor]
AfterStep = Callable[[int], bool]


@dataclass(frozen=True)
class TrainingConfig:
    """Steps and optimizer settings of one training run.

    Attributes:
        steps: number of optimizer steps.
        learning_rate: peak learning rate of AdamW and Muon, after a linear warm-up. It then falls as a cosine to 0.
            With `use_muon` it is constant for the first half and then falls linearly to 0 (Hägele et al. 2024).
        weight_decay: of AdamW.
        warmup_steps: steps of the linear warm-up.
        max_grad_norm: the gradient norm is clipped to this value.
        overrides: `learning_rate` or `weight_decay` of the parameters whose names begin with a key, such as
            {"tokens": {"learning_rate": 1e-3, "weight_decay": 0}}; the longest matching key applies.
        use_muon: whether Muon updates the weight matrices inside the network (`select_hidden_weights`).
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    use_muon: bool = False

    def learning_rate_factor(self, step: int) -> float:
        """Return the learning rate of a step (from 0) divided by the peak learning rate."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        progress = max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.use_muon:
            return warmup * min(1.0, 2 * (1 - progress))
        return warmup * (0.5 * (1 + math.cos(math.pi * progress)))


def train(
    module: nn.Module,
    loss: Loss,
    config: TrainingConfig,
    *,
    seed: int,
    work_dir: Path,
    label: str,
    checkpoint_every: int = 100,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Minimise `loss` over the module's parameters that require a gradient, and return the loss of every step.

    Args:
        module: trained in place, on the device that accelerate chooses.
        loss: (step, generator on the CPU) -> scalar tensor.
        config: steps and optimizer settings.
        seed: seeds the generators of all steps.
        work_dir: folder of the checkpoint; a later call with the same folder resumes the run.
        label: text of the progress bar.
        checkpoint_every: steps between checkpoints.
        after_step: called with the number of completed steps after each step; True ends the training. A resumed run
            calls it again for the steps since the last checkpoint, with the same weights.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    checkpoint = work_dir / "checkpoint.safetensors"
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizers = _Optimizers(parameters, config)
    stored = load_checkpoint(checkpoint, optimizers.state()) or {"step": 0, "losses": []}
    done, losses = stored["step"], stored["losses"]
    module, optimizers.adamw = accelerator.prepare(module, optimizers.adamw)
    module.train()
    for step in track(range(done, config.steps), label):
        value = loss(step, step_generator(seed, step))
        accelerator.backward(value)
        accelerator.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
        optimizers.step(step)
        module.zero_grad(set_to_none=True)
        losses.append(round(float(value.detach()), 6))
        if after_step is not None and after_step(step + 1):
            break
        if (step + 1) % checkpoint_every == 0 and step + 1 < config.steps:
            save_checkpoint(checkpoint, optimizers.state(), step=step + 1, losses=losses)
    module.eval()
    return losses


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one training step; a large odd factor separates neighbouring seeds."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (2**63 - 1))


class _Optimizers:
    """Muon for the matrices inside the network, if it is used, and AdamW for all other parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> None:
        self.parameters, self.config = parameters, config
        self.inner = select_hidden_weights(parameters) if config.use_muon else {}
        self.outer = {name: parameter for name, parameter in parameters.items() if name not in self.inner}
        self.adamw = torch.optim.AdamW(_parameter_groups(self.outer, config), fused=True)
        allocate_moments(self.adamw)
        self.rate = torch.zeros((), device=next(iter(parameters.values())).device)
        self.muon = Muon(list(self.inner.values()), self.rate, MUON_EVERY, MUON_MOMENTUM) if self.inner else None

    def state(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name."""
        momentum = self.muon.momentum if self.muon is not None else []
        return {
            **{f"weight.{name}": parameter.detach() for name, parameter in self.parameters.items()},
            **optimizer_state(self.outer.items(), self.adamw),
            **{f"momentum.{name}": value for name, value in zip(self.inner, momentum, strict=True)},
        }

    def step(self, step: int) -> None:
        """Update the parameters by their gradients with the learning rate of this step."""
        factor = self.config.learning_rate_factor(step)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor
        self.adamw.step()
        if self.muon is not None:
            self.rate.fill_(self.config.learning_rate * factor)
            self.muon.step(step)


def _parameter_groups(parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups, one per key of the overrides; `peak` is the peak learning rate."""
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        key = max((key for key in config.overrides if name.startswith(key)), key=len, default="")
        members.setdefault(key, []).append(parameter)
    groups = []
    for key, group in members.items():
        settings = config.overrides.get(key, {})
        rate = settings.get("learning_rate", config.learning_rate)
        decay = settings.get("weight_decay", config.weight_decay)
        groups.append({"params": group, "lr": rate, "peak": rate, "weight_decay": decay})
    return groups
