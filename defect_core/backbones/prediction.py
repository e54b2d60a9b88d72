"""What a denoiser predicts: the noise, or the velocity of Stable Diffusion 2.x, which is converted to the noise."""

from typing import Any

import torch
from torch import Tensor

from defect_core.errors import InputError

MIN_TERMINAL_ALPHA = 1e-5  # Stable Diffusion ends at 0.0047; dividing by the root of 0 gives no clean image
_PROBE_SIDE = 16  # latents of the probe; convolutions accept any size
_NOISE_CORRELATION = 0.5  # the noise predicted from pure noise correlates by about 1, the velocity by about 0


def check_schedule(name: str, alphas_cumprod: Tensor, kind: str) -> None:
    """Check that the noise schedule of a backbone is supported.

    Args:
        name: of the backbone, for messages.
        alphas_cumprod: cumulative products of alpha, [N].
        kind: `prediction_type` of the scheduler.

    Raises:
        InputError: the model predicts neither noise nor velocity, or the schedule ends at a signal of zero.
    """
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"backbone {name}: scheduler/ has prediction_type {kind!r}; expected epsilon or v_prediction")
    if alphas_cumprod[-1] < MIN_TERMINAL_ALPHA:
        raise InputError(
            f"backbone {name}: the schedule ends at alpha_cumprod {float(alphas_cumprod[-1]):.2g} (zero terminal SNR), "
            "at which no noise can be predicted; expected a model without rescale_betas_zero_snr"
        )


def check_prediction(name: str, denoiser: Any, text: Tensor) -> None:
    """Check that a model whose scheduler states v-prediction does not predict the noise.

    From pure noise, a model of the noise returns about its input, and a model of the velocity about minus the mean
    image (Salimans and Ho 2022).

    Args:
        name: of the backbone, for messages.
        denoiser: the U-Net.
        text: encoded empty prompt, [1, T, D].

    Raises:
        InputError: the denoiser predicts the noise.
    """
    shape = (1, denoiser.config.in_channels, _PROBE_SIDE, _PROBE_SIDE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(text)
    predicted = denoiser(noise, 999, text).sample
    correlation = float(torch.corrcoef(torch.stack([noise.float().flatten(), predicted.float().flatten()]))[0, 1])
    if correlation > _NOISE_CORRELATION:
        raise InputError(
            f"backbone {name}: scheduler/ states prediction_type v_prediction, but unet/ predicts the noise "
            f"(correlation {correlation:.2f}); expected the scheduler of this model, with prediction_type epsilon"
        )


def predict_noise_from_velocity(denoiser: torch.nn.Module, alphas_cumprod: Tensor) -> None:
    """Make a denoiser that predicts the velocity return the noise in `.sample`, in place."""
    denoiser.register_forward_hook(_VelocityToNoise(alphas_cumprod), with_kwargs=True)


def velocity_to_noise(velocity: Tensor, noisy: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Return ε = sqrt(a)·v + sqrt(1 − a)·z_t in float32 (Salimans and Ho 2022, with v = sqrt(a)·ε − sqrt(1 − a)·z_0).

    Args:
        velocity: v, [B, C, h, w].
        noisy: z_t, [B, C, h, w].
        alpha_cumprod: a, [B] or [1].
    """
    level = alpha_cumprod.view(-1, 1, 1, 1)
    return level.sqrt() * velocity.float() + (1 - level).sqrt() * noisy.float()


class _VelocityToNoise:
    """Forward hook of the denoiser. It keeps the schedule in float32, also if the denoiser is cast."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.tables = {torch.device("cpu"): alphas_cumprod.float()}

    def __call__(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        noisy = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        velocity = output[0] if isinstance(output, tuple) else output.sample
        table = self.tables.get(velocity.device)
        if table is None:
            table = self.tables[velocity.device] = self.tables[torch.device("cpu")].to(velocity.device)
        rows = timestep.to(table.device).reshape(-1) if isinstance(timestep, Tensor) else slice(timestep, timestep + 1)
        noise = velocity_to_noise(velocity, noisy, table[rows]).to(velocity.dtype)
        if isinstance(output, tuple):
            return (noise, *output[1:])
        output.sample = noise
        return output
