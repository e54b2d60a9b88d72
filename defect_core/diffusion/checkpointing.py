"""Gradient checkpointing that works together with the control of the cross-attention.

A checkpointed block runs again in the backward pass, when the context managers around the forward pass are closed. It
must then do the same operations, so the controls and the attention kernels of the forward pass are restored.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from defect_core.diffusion.attention import find_attention_control

_ATTENTION_KERNELS = {
    SDPBackend.MATH: cuda.math_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
}


def enable_gradient_checkpointing(*networks: Any) -> None:
    """Recompute the blocks of diffusers networks in the backward pass instead of keeping their activations.

    Captured attention maps have the same values and gradients as without checkpointing.

    Args:
        *networks: diffusers models such as a U-Net or a ControlNet.
    """
    for network in networks:

        def run(module: nn.Module, *args: Any, _network: Any = network) -> Any:
            control = find_attention_control(_network)

            def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
                replayed = nullcontext() if control is None else control.replay()
                return nullcontext(), _entered(same_attention_kernels(), replayed)

            return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

        network.enable_gradient_checkpointing(run)


def same_attention_kernels() -> AbstractContextManager[Any]:
    """Return a context with the attention kernels that are enabled now.

    torch restores the autocast state in a recomputation, but not these kernels.
    """
    return sdpa_kernel([kernel for kernel, is_enabled in _ATTENTION_KERNELS.items() if is_enabled()])


@contextmanager
def _entered(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
