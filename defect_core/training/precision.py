"""Half-precision arithmetic for training and for inference, and attention in plain operations for CPUs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from defect_core.backbones.compute import DEFAULT_COMPUTE, ComputeConfig

MAX_PLAIN_LATENT_SIZE = 32
"""Largest latent side for unfused attention, whose memory grows with the fourth power of this side."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextmanager
def training_autocast(
    device: torch.device,
    latent_size: int = 0,
    plain_attention: bool = False,
    compute: ComputeConfig = DEFAULT_COMPUTE,
) -> Iterator[None]:
    """Compute in half precision while training; the weights stay float32.

    On a CPU the backward pass of fused attention is slow in bfloat16, so attention is unfused there. Latents larger
    than `MAX_PLAIN_LATENT_SIZE` need too much memory for that: with `dtype: auto` a CPU then computes in float32.

    Args:
        device: where the network computes.
        latent_size: side of the latents.
        plain_attention: whether attention runs as plain operations on a CPU, which makes a step about 5 % faster. It
            does not work with gradient checkpointing, which recomputes activations outside this context.
        compute: number type and attention.
    """
    dtype = compute_dtype(device, compute)
    if device.type == "cpu" and compute.dtype == "auto" and latent_size > MAX_PLAIN_LATENT_SIZE:
        dtype = torch.float32
    with ExitStack() as stack:
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if device.type == "cpu" and dtype != torch.float32 and latent_size <= MAX_PLAIN_LATENT_SIZE:
            stack.enter_context(_PlainAttention() if plain_attention else sdpa_kernel(SDPBackend.MATH))
        elif compute.attention == "math":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def inference_autocast(*networks: nn.Module, compute: ComputeConfig = DEFAULT_COMPUTE) -> Iterator[None]:
    """Compute without gradients in half precision, where `compute` and the device allow it.

    The weights of convolutions and linear layers are cast once and restored at the end. Autocast alone would cast them
    in every call.

    Args:
        *networks: the networks that predict inside the context, all on one device.
        compute: number type and attention.
    """
    layers = [layer for each in networks for layer in each.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    device = parameters[0].device if parameters else torch.device("cpu")
    dtype = compute_dtype(device, compute)
    with ExitStack() as stack:
        if compute.attention == "math":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if dtype != torch.float32:
            stack.enter_context(_cast_weights(parameters, dtype))
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
            if device.type == "cpu":
                # The rounding of fused attention depends on the batch size; a sample must not depend on its batch.
                stack.enter_context(_PlainAttention())
        yield


def compute_dtype(device: torch.device, compute: ComputeConfig = DEFAULT_COMPUTE) -> torch.dtype:
    """Return the number type in which networks on a device compute."""
    if compute.dtype != "auto":
        return _DTYPES[compute.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if has_native_bf16() else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def has_native_bf16() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX-512 BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@contextmanager
def _cast_weights(parameters: list[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    originals = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            layout = torch.channels_last if parameter.dim() == 4 else torch.preserve_format
            parameter.data = parameter.data.to(dtype, memory_format=layout)
        yield
    finally:
        for parameter, data in zip(parameters, originals, strict=True):
            parameter.data = data


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
