"""Noise schedules and single steps between two noise levels, as pure functions of tensors.

Equation numbers without a paper refer to DDIM (Song et al. 2021, "Denoising diffusion implicit models").
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """The T + 1 noise levels of a sampler: level 0 is clean, level T is the noisiest.

    Attributes:
        timesteps: int64 [T + 1], rising; the training timestep that the denoiser receives at each level.
        alphas_cumprod: float64 [T + 1], falling; cumulative alpha at each level. The first is exactly 1.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor

    @property
    def steps(self) -> int:
        """The number of steps T from the noisiest level to the clean one."""
        return len(self.timesteps) - 1


def make_trajectory(alphas_cumprod: Tensor, steps: int) -> Trajectory:
    """Return evenly spaced noise levels of a training schedule with N timesteps.

    Args:
        alphas_cumprod: [N], falling.
        steps: T, at least 1 and below N.

    Raises:
        ValueError: `steps` is out of range.
    """
    count = len(alphas_cumprod)
    if not 1 <= steps < count:
        raise ValueError(f"steps must be between 1 and {count - 1}, got {steps}")
    timesteps = torch.linspace(0, count - 1, steps + 1, dtype=torch.float64).round().long()
    levels = alphas_cumprod.double().cpu()[timesteps].clone()
    levels[0] = 1.0
    return Trajectory(timesteps, levels)


def noise_ratio(alpha_cumprod: Tensor) -> Tensor:
    """Return sqrt(1/a − 1), the noise's standard deviation divided by the scale of the signal."""
    return (1 / alpha_cumprod - 1).sqrt()


def add_noise(latents: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Return a sample of q(z_t | z_0): sqrt(a)·z_0 + sqrt(1 − a)·noise, computed in float32, in the latents' type.

    In half precision a itself would be rounded: bfloat16 has no number between 0.996 and 1.

    Args:
        latents: z_0, [B, C, h, w].
        noise: standard normal, [B, C, h, w].
        alpha_cumprod: a, [B], in (0, 1]; one noise level per batch item.
    """
    level = alpha_cumprod.to(latents.device, _at_least_float32(latents)).view(-1, 1, 1, 1)
    return (level.sqrt() * latents + (1 - level).sqrt() * noise).to(latents.dtype)


def pred_original_sample(latents: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Return the clean latents that predicted noise implies: (z_t − sqrt(1 − a)·ε) / sqrt(a) (eq. 9).

    Args:
        latents: z_t, [B, ...].
        noise: ε, the same shape.
        alpha_cumprod: a, in (0, 1]: a scalar, whose roots keep its own precision, or [B] with one noise level per batch
            item, computed in float32.
    """
    if alpha_cumprod.ndim == 0:
        return (latents - float((1 - alpha_cumprod).sqrt()) * noise) / float(alpha_cumprod.sqrt())
    level = alpha_cumprod.to(latents.device, _at_least_float32(latents)).view(-1, *[1] * (latents.ndim - 1))
    return ((latents - (1 - level).sqrt() * noise) / level.sqrt()).to(latents.dtype)


def ddim_step(
    latents: Tensor,
    noise: Tensor,
    alpha_cumprod_from: Tensor,
    alpha_cumprod_to: Tensor,
    eta: float = 0.0,
    fresh_noise: Tensor | None = None,
) -> Tensor:
    """Move latents from one noise level to another (eq. 12 and 16).

    z_to = sqrt(a_to)·ẑ_0 + sqrt(1 − a_to − σ²)·ε + σ·n,  σ = eta·sqrt((1 − a_to)/(1 − a_from))·sqrt(1 − a_from/a_to).

    Args:
        latents: z_from, any shape.
        noise: ε, the predicted noise, the same shape.
        alpha_cumprod_from: a_from, scalar in (0, 1].
        alpha_cumprod_to: a_to, scalar in (0, 1]. With eta 0 it may also be below a_from: that is DDIM inversion.
        eta: 0 is deterministic; 1 is ancestral sampling, with as much fresh noise as DDPM (Ho et al. 2020).
        fresh_noise: n, standard normal, the same shape; required if eta > 0. It has no effect where a_to is 1.

    Raises:
        ValueError: eta > 0 without fresh noise.
    """
    if eta == 0:
        slope = noise_ratio(alpha_cumprod_to) - noise_ratio(alpha_cumprod_from)
        return float(alpha_cumprod_to.sqrt()) * (latents / float(alpha_cumprod_from.sqrt()) + float(slope) * noise)
    if fresh_noise is None:
        raise ValueError("eta > 0 needs fresh noise")
    variance = eta**2 * (1 - alpha_cumprod_to) / (1 - alpha_cumprod_from) * (1 - alpha_cumprod_from / alpha_cumprod_to)
    direction = (1 - alpha_cumprod_to - variance).clamp(min=0).sqrt()
    clean = pred_original_sample(latents, noise, alpha_cumprod_from)
    return float(alpha_cumprod_to.sqrt()) * clean + float(direction) * noise + float(variance.sqrt()) * fresh_noise


def _at_least_float32(latents: Tensor) -> torch.dtype:
    return torch.promote_types(latents.dtype, torch.float32)
