"""The training loop: accelerate for the device, progress, checkpoints without pickle, exact resume.

Step i draws all its randomness from a generator seeded by (seed, i), so a run killed anywhere and started again
ends with the same weights as an undisturbed one; nothing but weights, optimiser moments and a step number is kept.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from defect_core.progress import track
from defect_core.training.muon import Muon, inner_weights

Loss = Callable[[int, torch.Generator], Tensor]
Watch = Callable[[int], bool]

MUON_EVERY, MUON_MOMENTUM = 2, 0.9


def train(
    module: nn.Module,
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    work_dir: Path,
    label: str,
    checkpoint_every: int = 100,
    warmup: int = 20,
    max_grad_norm: float = 1.0,
    watch: Watch | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
    muon: bool = False,
) -> list[float]:
    """Minimise `loss` over the module's parameters that require a gradient, with AdamW and a cosine schedule.

    Args:
        module: trained in place, on the device accelerate chooses.
        loss: (step, generator on the CPU) -> scalar tensor.
        steps, learning_rate, weight_decay, warmup, max_grad_norm: as in AdamW with linear warm-up, cosine to 0.
        seed: decides every draw.
        work_dir: holds the checkpoint; a later call with the same folder goes on from there.
        label: shown with the progress.
        checkpoint_every: steps between checkpoints.
        watch: called with the number of steps done after each of them; True ends the training there. After a kill
            it is called again for the steps since the last checkpoint, with the same weights.
        overrides: `learning_rate` or `weight_decay` of the parameters whose names begin with a key, such as
            {"tokens": {"learning_rate": 1e-3, "weight_decay": 0}}; the longest key that fits counts.
        muon: whether Muon moves the matrices inside the network (`inner_weights`), at the same learning rate. All rates
            then stay for half of the steps and fall in a line (Hägele et al. 2024), which it learns more from.

    Returns:
        The loss of every step.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    trained = list(named.values())
    plain = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    inner = inner_weights(named) if muon else {}
    outer = {name: parameter for name, parameter in named.items() if name not in inner}
    optimiser = torch.optim.AdamW(_groups(outer, plain, overrides or {}), fused=True)
    rate = torch.zeros((), device=trained[0].device)
    aside = Muon(list(inner.values()), rate, MUON_EVERY, MUON_MOMENTUM) if inner else None
    momentum = dict(zip(inner, aside.momentum, strict=True)) if aside else {}
    checkpoint = _Checkpoint(work_dir / "checkpoint.safetensors", named, optimiser, momentum)
    done, losses = checkpoint.restore()
    if aside is not None:
        aside.steps = done
    module, optimiser = accelerator.prepare(module, optimiser)
    module.train()
    share = _held if muon else _cosine
    for step in track(range(done, steps), label):
        now = min(1.0, (step + 1) / max(1, warmup)) * share(max(0, step - warmup) / max(1, steps - warmup))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * now
        value = loss(step, step_generator(seed, step))
        accelerator.backward(value)
        accelerator.clip_grad_norm_(trained, max_grad_norm)
        optimiser.step()
        if aside is not None:
            rate.fill_(learning_rate * now)
            aside.step()
        module.zero_grad(set_to_none=True)
        losses.append(round(float(value.detach()), 6))
        if watch is not None and watch(step + 1):
            break
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            checkpoint.save(step + 1, losses)
    module.eval()
    return losses


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one training step; a large odd factor keeps neighbouring seeds apart."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (2**63 - 1))


@contextmanager
def bf16_autocast(device: torch.device, latent_size: int = 0, written_out: bool = False) -> Iterator[None]:
    """bfloat16 arithmetic for training; on a CPU only if it has instructions for it, without them it would be slower.

    There attention is unfused, for its fused form runs backwards slowly in bfloat16. That needs the fourth power of the
    latents' side in memory: with more than 32 places a side a CPU keeps to the plain arithmetic. `written_out`: in our
    own operations, a twentieth of a step faster; not with gradient checkpointing, which computes it again outside.
    """
    with ExitStack() as stack:
        if device.type != "cpu" or (_native_bfloat16() and latent_size <= 32):
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
            if device.type == "cpu":
                stack.enter_context(_WrittenOutAttention() if written_out else sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def bf16_inference(*networks: nn.Module) -> Iterator[None]:
    """bfloat16 arithmetic for networks that only predict, on a CPU that has instructions for it.

    Elsewhere nothing changes: an accelerator keeps the number type of the backbone. The weights of what computes in
    bfloat16 are cast once, at the beginning, and put back at the end: autocast alone would cast them in every call.
    """
    layers = [layer for each in networks for layer in each.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if not _native_bfloat16() or any(parameter.device.type != "cpu" for parameter in parameters):
        yield
        return
    kept = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            layout = torch.channels_last if parameter.dim() == 4 else torch.preserve_format
            parameter.data = parameter.data.to(torch.bfloat16, memory_format=layout)
        # attention in its fused form rounds otherwise for another batch
        with torch.autocast("cpu", dtype=torch.bfloat16), _WrittenOutAttention():
            yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


class _WrittenOutAttention(TorchFunctionMode):
    """softmax(Q K^T / sqrt(d)) V in plain operations: torch's own unfused form looks for rows that are masked whole in
    every call, a tenth of the time of a small network on a CPU. For drawing only: what gradient checkpointing computes
    again is computed outside of any mode.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention or _is_masked(*args, **kwargs):
            return function(*args, **kwargs)
        return _attention(*args, **kwargs)


def _is_masked(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **rest: Any
) -> bool:
    return attn_mask is not None or dropout_p > 0 or bool(rest.get("is_causal")) or bool(rest.get("enable_gqa"))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = ((query * scale) @ key.transpose(-1, -2)).softmax(-1)
    return weights.to(value.dtype) @ value


def _native_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _groups(
    named: Mapping[str, nn.Parameter], plain: Mapping[str, float], overrides: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """AdamW's parameter groups, one for each setting; `peak` is the learning rate that the schedule scales."""
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        key = max((key for key in overrides if name.startswith(key)), key=len, default="")
        members.setdefault(key, []).append(parameter)
    groups = []
    for key, parameters in members.items():
        chosen = {**plain, **overrides.get(key, {})}
        rate, decay = chosen["learning_rate"], chosen["weight_decay"]
        groups.append({"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay})
    return groups


def _cosine(passed: float) -> float:
    """The share of the peak's learning rate when this share of the steps after the warm-up has passed."""
    return 0.5 * (1 + math.cos(math.pi * passed))


def _held(passed: float) -> float:
    return min(1.0, 2 * (1 - passed))


class _Checkpoint:
    """Weights and moments in one safetensors file, step and losses in its header; replaced in one move."""

    def __init__(
        self,
        file: Path,
        parameters: dict[str, nn.Parameter],
        optimiser: torch.optim.AdamW,
        momentum: dict[str, Tensor],  # Muon's
    ) -> None:
        self.file, self.parameters, self.optimiser, self.momentum = file, parameters, optimiser, momentum

    def save(self, step: int, losses: list[float]) -> None:
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value).contiguous()
        tensors |= {f"momentum.{name}": value.contiguous() for name, value in self.momentum.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        save_file(tensors, fresh, metadata={"step": str(step), "losses": json.dumps(losses)})
        os.replace(fresh, self.file)

    def restore(self) -> tuple[int, list[float]]:
        if not self.file.is_file():
            return 0, []
        with safe_open(self.file, "pt") as stored:
            facts, kept = stored.metadata(), set(stored.keys())
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(stored.get_tensor(f"weight.{name}"))
                    if name in self.momentum:
                        self.momentum[name].copy_(stored.get_tensor(f"momentum.{name}"))
                    if f"step.{name}" not in kept:  # it had no gradient yet
                        continue
                    self.optimiser.state[parameter] = {
                        "step": stored.get_tensor(f"step.{name}"),
                        "exp_avg": stored.get_tensor(f"exp_avg.{name}").to(parameter.device),
                        "exp_avg_sq": stored.get_tensor(f"exp_avg_sq.{name}").to(parameter.device),
                    }
        return int(facts["step"]), json.loads(facts["losses"])
