"""One step of the pretraining: forwards, backwards, Muon and AdamW, the average of weights; and its checkpoint.

On an accelerator the step is compiled and recorded once (a CUDA graph), then replayed: the networks are small, and
calling their kernels one by one takes longer than running them.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from defect_core.backbones.architecture import write_json
from defect_core.training.muon import Muon, inner_weights

LEARNING_RATE, MUON_RATE = 8e-4, 1.5e-3
EMA_DECAY = 0.999
RECORD_AFTER = 3  # steps of a run that are called kernel by kernel, before one is recorded


class Learner:
    """A model in training.

    Args:
        model: `denoiser` and `text_encoder`.
        device: where it learns.
        record: whether to record the step; False: each kernel is called.

    Attributes:
        model: as given, on the device.
        average: moving average of its weights, by name; this is what is exported.
    """

    def __init__(self, model: nn.ModuleDict, device: torch.device, record: bool = True) -> None:
        self._device, self.model = device, model.to(device, memory_format=torch.channels_last).train()
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        values = model.state_dict()
        moving = [(value, values[name]) for name, value in self.average.items() if value.is_floating_point()]
        self._averages, self._values = map(list, zip(*moving, strict=True))
        inner = inner_weights(dict(self.model["denoiser"].named_parameters()))
        inner = {f"denoiser.{name}": weight for name, weight in inner.items()}
        outer = {name: weight for name, weight in self.model.named_parameters() if name not in inner}
        self._rate, self._muon_rate = (torch.tensor(rate, device=device) for rate in (LEARNING_RATE, MUON_RATE))
        self._adamw, self._muon = _adamw(list(outer.values()), self._rate), Muon(list(inner.values()), self._muon_rate)
        self._inner, self._outer = inner, outer
        on_cuda = device.type == "cuda"
        self._denoiser = torch.compile(model["denoiser"]) if on_cuda else model["denoiser"]
        self._plain_steps = RECORD_AFTER if on_cuda and record else None
        self._graph: torch.cuda.CUDAGraph | None = None
        # what is to be recorded must not have run on the default stream before
        self._stream = torch.cuda.Stream() if on_cuda else None

    def step(self, batch: dict[str, Tensor], step: int, rate: float) -> Tensor:
        """Learn from one batch at this share of the learning rate; the loss, on the device."""
        self._rate.fill_(LEARNING_RATE * rate)
        self._muon_rate.fill_(MUON_RATE * rate)
        if self._plain_steps == 0:
            self._record(batch)
        if self._plain_steps is not None:
            self._plain_steps -= 1
        if self._graph is None:
            loss = self._learn_aside(batch)
        else:
            for name, value in batch.items():
                self._batch[name].copy_(value)
            self._graph.replay()
            loss = self._loss.clone()
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._values, 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        return loss

    def save(self, work: Path, step: int) -> None:
        """Write weights, their average and the optimiser's moments, in one move."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in self._kept().items()}
        save_file(tensors, work / "checkpoint.tmp", metadata={"step": str(step)})
        os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")
        write_json(work / "checkpoint.json", {"step": step})

    def resume(self, work: Path) -> int:
        """Put the last checkpoint in place, if there is one; the step to go on from."""
        from safetensors import safe_open

        path = work / "checkpoint.safetensors"
        if not path.is_file():
            return 0
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            for name, value in self._kept().items():
                value.copy_(stored.get_tensor(name))
            step = int(stored.metadata()["step"])
        for moments in self._adamw.state.values():
            moments["step"].fill_(step)
        return step

    def _kept(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, weight in self._outer.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self._adamw.state[weight][moment]
        return tensors | {
            f"momentum.{name}": value for name, value in zip(self._inner, self._muon.momentum, strict=True)
        }

    def _learn_aside(self, batch: dict[str, Tensor]) -> Tensor:
        if self._stream is None:
            return self._learn(batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._learn(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _learn(self, batch: dict[str, Tensor]) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        with _fast(self._device):
            states = self.model["text_encoder"](input_ids=batch["tokens"]).last_hidden_state
            noisy = batch["noisy"].contiguous(memory_format=torch.channels_last)
            noise = self._denoiser(noisy, batch["times"], states, return_dict=False)[0]
        loss = (batch["weight"] * (noise.float() - batch["noise"]) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._adamw.step()
        self._muon.step()
        return loss.detach()

    def _record(self, batch: dict[str, Tensor]) -> None:
        self._batch = {name: value.clone() for name, value in batch.items()}
        self.model.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._loss = self._learn(self._batch)


def _adamw(weights: list[nn.Parameter], rate: Tensor) -> torch.optim.AdamW:
    """With its moments from the start: a checkpoint is put into them, and a recording needs them in their place."""
    options: dict[str, Any] = {"fused": True, "capturable": True} if rate.is_cuda else {}
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.99), weight_decay=0.01, **options)
    for weight in weights:
        moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        optimizer.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}
    return optimizer


@contextmanager
def _fast(device: torch.device) -> Iterator[None]:
    """bfloat16 arithmetic under float32 weights: 1.7 times as fast on a CPU, if attention is written out.

    (The CPU's fused attention runs backwards slowly in bfloat16, and these pictures have 64 positions only.)
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=device.type == "cpu"))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
