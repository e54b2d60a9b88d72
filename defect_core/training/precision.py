"""bfloat16 arithmetic for training and for inference, and attention in plain operations, which is faster on CPUs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

MAX_PLAIN_LATENT_SIZE = 32
"""Largest latent side for unfused attention, whose memory grows with the fourth power of this side."""


@contextmanager
def bf16_autocast(device: torch.device, latent_size: int = 0, plain_attention: bool = False) -> Iterator[None]:
    """Compute in bfloat16 while training; on a CPU only if it has bfloat16 instructions.

    On a CPU the backward pass of fused attention is slow in bfloat16, so attention is unfused there. Latents larger
    than `MAX_PLAIN_LATENT_SIZE` need too much memory for that: a CPU then computes in float32.

    Args:
        device: where the network computes.
        latent_size: side of the latents.
        plain_attention: whether attention runs as plain operations on a CPU, which makes a step about 5 % faster. It
            does not work with gradient checkpointing, which recomputes activations outside this context.
    """
    with ExitStack() as stack:
        if device.type != "cpu" or (has_native_bf16() and latent_size <= MAX_PLAIN_LATENT_SIZE):
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
            if device.type == "cpu":
                stack.enter_context(_PlainAttention() if plain_attention else sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def bf16_inference(*networks: nn.Module) -> Iterator[None]:
    """Compute in bfloat16 without gradients, on a CPU that has bfloat16 instructions; elsewhere nothing changes.

    The weights of convolutions and linear layers are cast once and restored at the end. Autocast alone would cast them
    in every call.

    Args:
        *networks: the networks that predict inside the context.
    """
    layers = [layer for each in networks for layer in each.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if not has_native_bf16() or any(parameter.device.type != "cpu" for parameter in parameters):
        yield
        return
    originals = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            layout = torch.channels_last if parameter.dim() == 4 else torch.preserve_format
            parameter.data = parameter.data.to(torch.bfloat16, memory_format=layout)
        # The rounding of fused attention depends on the batch size; a sample must not depend on its batch.
        with torch.autocast("cpu", dtype=torch.bfloat16), _PlainAttention():
            yield
    finally:
        for parameter, data in zip(parameters, originals, strict=True):
            parameter.data = data


def has_native_bf16() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX-512 BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


class _PlainAttention(TorchFunctionMode):
    """Replaces torch's attention by softmax(Q K^T / sqrt(d)) V in plain operations.

    Torch's own unfused attention searches for fully masked rows in every call. On a CPU that is a tenth of the time of
    a small network.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or _is_masked(*args, **kwargs):
            return func(*args, **kwargs)
        return _attention(*args, **kwargs)


def _is_masked(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **others: Any
) -> bool:
    return attn_mask is not None or dropout_p > 0 or bool(others.get("is_causal")) or bool(others.get("enable_gqa"))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = ((query * factor) @ key.transpose(-1, -2)).softmax(-1)
    return weights.to(value.dtype) @ value
