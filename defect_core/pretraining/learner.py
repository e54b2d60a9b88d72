"""One training step of the embedded backbone, with Muon, AdamW and a moving average of the weights, and its checkpoint.

On a GPU the step is compiled and captured as a CUDA graph. The networks are small, and launching their kernels one by
one takes longer than running them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from defect_core.training.checkpoint import allocate_moments, load_checkpoint, optimizer_state, save_checkpoint
from defect_core.training.muon import Muon, select_hidden_weights

ADAMW_LEARNING_RATE, MUON_LEARNING_RATE = 8e-4, 1.5e-3
EMA_DECAY = 0.999
EAGER_STEPS = 3  # steps before the CUDA graph is captured, so that compilation and cuDNN autotuning are finished
CHECKPOINT = "checkpoint.safetensors"


class _CapturedStep(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: dict[str, Tensor]
    loss: Tensor


class Learner:
    """A denoiser and a text encoder in training.

    Args:
        model: modules `denoiser` (UNet2DConditionModel) and `text_encoder` (CLIPTextModel).
        device: where to train.
        use_cuda_graph: whether to replay the step as a CUDA graph on a GPU.

    Attributes:
        model: the modules, on the device and in training mode.
        ema: exponential moving average of the weights, by name; this is what is exported.
    """

    def __init__(self, model: nn.ModuleDict, device: torch.device, use_cuda_graph: bool = True) -> None:
        self._device = device
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        values = model.state_dict()
        self.ema = {name: value.clone() for name, value in values.items()}
        floating = [name for name, value in self.ema.items() if value.is_floating_point()]
        self._ema_values, self._values = [self.ema[name] for name in floating], [values[name] for name in floating]
        muon_weights = select_hidden_weights(dict(self.model["denoiser"].named_parameters()))
        self._muon_weights = {f"denoiser.{name}": weight for name, weight in muon_weights.items()}
        self._adamw_weights = {n: w for n, w in self.model.named_parameters() if n not in self._muon_weights}
        self._adamw_rate = torch.tensor(ADAMW_LEARNING_RATE, device=device)
        self._muon_rate = torch.tensor(MUON_LEARNING_RATE, device=device)
        self._adamw = _build_adamw(list(self._adamw_weights.values()), self._adamw_rate)
        self._muon = Muon(list(self._muon_weights.values()), self._muon_rate)
        is_cuda = device.type == "cuda"
        self._denoiser = torch.compile(model["denoiser"]) if is_cuda else model["denoiser"]
        self._eager_steps_left = EAGER_STEPS if is_cuda and use_cuda_graph else None
        self._captured: _CapturedStep | None = None
        # A step can be captured only if the steps before it ran on a side stream.
        self._stream = torch.cuda.Stream() if is_cuda else None

    def step(self, batch: dict[str, Tensor], step: int, rate_factor: float) -> Tensor:
        """Train on one batch and return the loss, a scalar on the device.

        Args:
            batch: `noisy`, `noise`, `weight` [B, C, h, w], `timesteps` [B] and `tokens` [B, T]; the shapes of the first
                batch hold for all.
            step: number of the step, from 0; the decay of the moving average grows with it.
            rate_factor: factor of both learning rates.
        """
        self._adamw_rate.fill_(ADAMW_LEARNING_RATE * rate_factor)
        self._muon_rate.fill_(MUON_LEARNING_RATE * rate_factor)
        if self._eager_steps_left == 0:
            self._captured = self._capture(batch)
        if self._eager_steps_left is not None:
            self._eager_steps_left -= 1
        if self._captured is None:
            loss = self._eager_step(batch)
        else:
            for name, value in batch.items():
                self._captured.batch[name].copy_(value)
            self._captured.graph.replay()
            loss = self._captured.loss.clone()
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(self._ema_values, self._values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        return loss

    def save(self, work: Path, step: int) -> None:
        """Write weights, their moving average and the optimiser state after `step` steps to a work folder."""
        save_checkpoint(work / CHECKPOINT, self._checkpoint_tensors(), step=step)

    def resume(self, work: Path) -> int:
        """Load the checkpoint of a work folder, if there is one, and return the number of the next step."""
        stored = load_checkpoint(work / CHECKPOINT, self._checkpoint_tensors())
        return stored["step"] if stored else 0

    def _checkpoint_tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.ema.items()}
        tensors |= optimizer_state(self._adamw_weights.items(), self._adamw)
        momenta = zip(self._muon_weights, self._muon.momentum, strict=True)
        return tensors | {f"momentum.{name}": value for name, value in momenta}

    def _eager_step(self, batch: dict[str, Tensor]) -> Tensor:
        if self._stream is None:
            return self._update_weights(batch)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._update_weights(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _update_weights(self, batch: dict[str, Tensor]) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        with _bf16_autocast(self._device):
            states = self.model["text_encoder"](input_ids=batch["tokens"]).last_hidden_state
            noisy = batch["noisy"].contiguous(memory_format=torch.channels_last)
            noise = self._denoiser(noisy, batch["timesteps"], states, return_dict=False)[0]
        loss = (batch["weight"] * (noise.float() - batch["noise"]) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._adamw.step()
        self._muon.step()
        return loss.detach()

    def _capture(self, batch: dict[str, Tensor]) -> _CapturedStep:
        batch = {name: value.clone() for name, value in batch.items()}
        self.model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            loss = self._update_weights(batch)
        return _CapturedStep(graph, batch, loss)


def rate_factor(step: int, steps: int, warm_up: int, decay_fraction: float) -> float:
    """Return the factor of the learning rate at a step, counted from 0.

    It rises linearly over `warm_up` steps, and falls linearly to 0.02 over the last `decay_fraction` of the steps.
    """
    return min(1.0, (step + 1) / warm_up, max(0.02, (steps - step) / (decay_fraction * steps)))


def _build_adamw(weights: list[nn.Parameter], rate: Tensor) -> torch.optim.AdamW:
    """Return AdamW with its moments allocated, because `resume` and the CUDA graph need them before the first step."""
    options: dict[str, Any] = {"fused": True, "capturable": True} if rate.is_cuda else {}
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.99), weight_decay=0.01, **options)
    allocate_moments(optimizer)
    return optimizer


@contextmanager
def _bf16_autocast(device: torch.device) -> Iterator[None]:
    """Compute in bfloat16 with float32 weights, on every device, so that all runs use the same arithmetic.

    On a CPU attention is unfused: the backward pass of fused attention is slow in bfloat16, and the latents have at
    most 64 attention positions. This is 1.7 times as fast as float32.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=device.type == "cpu"))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
