"""The training loop: accelerate, AdamW and Muon, accumulation of gradients, checkpoints, exact resume.

The randomness of step i comes from a generator seeded with (seed, i). A run that is killed and started again therefore
ends with the same weights as an uninterrupted run.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from defect_core.backbones.compute import DEFAULT_COMPUTE, ComputeConfig
from defect_core.progress import track
from defect_core.training.checkpoint import allocate_moments, load_checkpoint, optimizer_state, save_checkpoint
from defect_core.training.guard import FiniteGuard
from defect_core.training.half_moments import HalfMomentsAdamW
from defect_core.training.muon import Muon, select_hidden_weights
from defect_core.training.precision import compute_dtype

if TYPE_CHECKING:
    from accelerate import Accelerator

MUON_EVERY, MUON_MOMENTUM = 2, 0.9  # see `Muon`; found by our own trials (docs/research/trials.md)

Loss = Callable[[int, torch.Generator], Tensor | Iterable[Tensor]]
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
        max_grad_norm: the gradient norm is clipped to this value; None: no clipping.
        overrides: `learning_rate` or `weight_decay` of the parameters whose names begin with a key, such as
            {"tokens": {"learning_rate": 1e-3, "weight_decay": 0}}; the longest matching key applies.
        use_muon: whether Muon updates the weight matrices inside the network (`select_hidden_weights`).
        schedule: `cosine` as above, or `constant`: the learning rate without warm-up and decay, as most papers have it.
        moments: number type of AdamW's moments; `bf16` halves their memory (see `HalfMomentsAdamW`).
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int = 20
    max_grad_norm: float | None = 1.0
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    use_muon: bool = False
    schedule: Literal["cosine", "constant"] = "cosine"
    moments: Literal["fp32", "bf16"] = "fp32"

    def learning_rate_factor(self, step: int) -> float:
        """Return the learning rate of a step (from 0) divided by the peak learning rate."""
        if self.schedule == "constant":
            return 1.0
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
    after_step: AfterStep | None = None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
) -> list[float]:
    """Minimise `loss` over the module's parameters that require a gradient, and return the loss of every step.

    Args:
        module: trained in place, on its device.
        loss: (step, generator on the CPU) -> scalar tensor. Or several, one for each part of the batch, whose sum is
            the loss; each is differentiated before the next is computed, so that only one part needs memory.
        config: steps and optimizer settings.
        seed: seeds the generators of all steps.
        work_dir: folder of the checkpoint; a later call with the same folder resumes the run.
        label: text of the progress bar.
        after_step: called with the number of completed steps after each step; True ends the training. A resumed run
            calls it again for the steps since the last checkpoint, with the same weights.
        compute: number type, which decides whether gradients are scaled, and the interval of the checkpoints.

    Raises:
        NonFiniteError: a loss, the norm of the gradients or a weight is not finite. The last checkpoint is kept.
        ValueError: the parameters are on several devices.
    """
    checkpoint = work_dir / "checkpoint.safetensors"
    from accelerate import Accelerator

    # The caller has chosen the device, which may differ from the one that accelerate would choose.
    accelerator = Accelerator(device_placement=False)
    optimizers = _Optimizers(module, config, compute, accelerator)
    stored = load_checkpoint(checkpoint, optimizers.state()) or {"step": 0, "losses": []}
    done, losses = stored["step"], stored["losses"]
    optimizers.scaler.load_state_dict(stored.get("scaler", {}) or optimizers.scaler.state_dict())
    recent: list[Tensor] = []
    module, optimizers.adamw = accelerator.prepare(module, optimizers.adamw)
    guard = FiniteGuard(label, optimizers.device, done)
    module.train()
    for step in track(range(done, config.steps), label):
        guard.begin_step()
        recent.append(optimizers.backward(loss(step, step_generator(seed, step))))
        guard.end_step(step, loss=recent[-1], norm_of_the_gradients=optimizers.step(step))
        module.zero_grad(set_to_none=True)
        if after_step is not None and after_step(step + 1):
            break
        if (step + 1) % compute.checkpoint_every == 0 and step + 1 < config.steps:
            guard.check_weights(optimizers.parameters.items(), step + 1)
            guard.last_checkpoint = step + 1
            losses += _to_numbers(recent)
            state = optimizers.scaler.state_dict()
            save_checkpoint(checkpoint, optimizers.state(), step=step + 1, losses=losses, scaler=state)
    guard.check_weights(optimizers.parameters.items(), config.steps)
    module.eval()
    return losses + _to_numbers(recent)


def _to_numbers(values: list[Tensor]) -> list[float]:
    """Return the losses of the last steps and forget them; only here the CPU waits for the device."""
    numbers = [round(value, 6) for value in torch.stack(values).tolist()] if values else []
    values.clear()
    return numbers


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one training step; a large odd factor separates neighbouring seeds."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (2**63 - 1))


class _Optimizers:
    """Muon for the matrices inside the network, if it is used, and AdamW for all other parameters."""

    def __init__(
        self, module: nn.Module, config: TrainingConfig, compute: ComputeConfig, accelerator: "Accelerator"
    ) -> None:
        self.accelerator = accelerator
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        # Running statistics, for example of batch norms. Buffers that `state_dict` omits are constants.
        stored = module.state_dict().keys()
        self.buffers = {name: buffer for name, buffer in module.named_buffers() if name in stored}
        devices = {parameter.device for parameter in parameters.values()}
        if len(devices) > 1:
            raise ValueError(f"parameters on {' and '.join(sorted(map(str, devices)))}; expected one device")
        device = next(iter(devices))
        self.parameters, self.config, self.device = parameters, config, device
        self.inner = select_hidden_weights(parameters) if config.use_muon else {}
        self.outer = {name: parameter for name, parameter in parameters.items() if name not in self.inner}
        self.adamw = _make_adamw(_parameter_groups(self.outer, config), config)
        self.rate = torch.zeros((), device=device)
        self.muon = Muon(list(self.inner.values()), self.rate, MUON_EVERY, MUON_MOMENTUM) if self.inner else None
        # Small gradients vanish in float16. Muon does not skip steps whose gradients overflow, so it has no scaling.
        needs_scaling = compute_dtype(device, compute) == torch.float16 and self.muon is None
        self.scaler = torch.amp.GradScaler(device.type, enabled=needs_scaling)

    def backward(self, values: Tensor | Iterable[Tensor]) -> Tensor:
        """Add the gradients of one loss, or of its parts one after the other, and return the loss of the step."""
        total: Tensor | None = None
        for value in [values] if isinstance(values, Tensor) else values:
            self.accelerator.backward(self.scaler.scale(value))
            total = value.detach() if total is None else total + value.detach()
        if total is None:
            raise ValueError("the loss has no parts; expected at least one")
        return total

    def state(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name."""
        momentum = self.muon.momentum if self.muon is not None else []
        return {
            **{f"weight.{name}": parameter.detach() for name, parameter in self.parameters.items()},
            **optimizer_state(self.outer.items(), self.adamw),
            **{f"momentum.{name}": value for name, value in zip(self.inner, momentum, strict=True)},
            **{f"buffer.{name}": value for name, value in self.buffers.items()},
        }

    def step(self, step: int) -> Tensor | None:
        """Clip the gradients, update the parameters with the learning rate of this step, and return the norm.

        Returns:
            The norm before clipping; None where it may overflow by design, with scaled gradients, or is not computed.
        """
        norm: Tensor | None = None
        factor = self.config.learning_rate_factor(step)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.adamw)
            norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm)
        self.scaler.step(self.adamw)
        self.scaler.update()
        if self.muon is not None:
            self.rate.fill_(self.config.learning_rate * factor)
            self.muon.step(step)
        return None if self.scaler.is_enabled() else norm


def _make_adamw(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW with its moments allocated, so that a checkpoint can be copied in."""
    if config.moments == "bf16":
        return HalfMomentsAdamW(groups)
    adamw = torch.optim.AdamW(groups, fused=True)
    allocate_moments(adamw)
    return adamw


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
