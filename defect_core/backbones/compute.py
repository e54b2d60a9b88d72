"""Settings of the section `compute`: how networks compute, the same for all methods."""

from typing import Literal

from pydantic import Field

from defect_core.settings import Settings


class ComputeConfig(Settings):
    """How the networks of the generators compute. The scores of downstream models do not depend on it."""

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number type of training (autocast; the weights stay float32) and sampling. `auto`: bf16 where the device has
    instructions for it, else fp16 on a GPU and fp32 on a CPU."""
    compile: bool = False
    """Compile the denoiser with torch.compile. The first step takes minutes."""
    channels_last: bool = False
    """Store the weights of the denoiser and the VAE in the layout that is fast for convolutions on a GPU."""
    attention: Literal["sdpa", "math"] = "sdpa"
    """`sdpa`: fused attention where the device has it. `math`: unfused, which needs more memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    accumulate: int = Field(default=1, ge=1)
    """Parts into which the batch of a training step is divided: less memory, the same gradient."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Training steps between checkpoints. A checkpoint of a whole Stable Diffusion U-Net has 10 GB."""


DEFAULT_COMPUTE = ComputeConfig()
