"""DDIM (Song et al. 2021) as pure functions of tensors: deterministic, downward and upward, and ancestral."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """The T + 1 noise levels that a sampler visits.

    Attributes:
        timesteps: int64 [T + 1], rising from 0 (clean) to the last training step; what the network is told.
        alpha_bars: float64 [T + 1], cumulative alpha at each level; the first is exactly 1.
    """

    timesteps: Tensor
    alpha_bars: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps) - 1


def make_trajectory(alphas_cumprod: Tensor, steps: int) -> Trajectory:
    """Evenly spaced levels over a training schedule of N steps.

    Args:
        alphas_cumprod: [N], falling.
        steps: T, at least 1 and below N.
    """
    count = len(alphas_cumprod)
    if not 1 <= steps < count:
        raise ValueError(f"steps must be between 1 and {count - 1}, got {steps}")
    timesteps = torch.linspace(0, count - 1, steps + 1, dtype=torch.float64).round().long()
    alpha_bars = alphas_cumprod.double().cpu()[timesteps].clone()
    alpha_bars[0] = 1.0
    return Trajectory(timesteps, alpha_bars)


def ddim_move(latents: Tensor, noise: Tensor, alpha_bar_from: Tensor, alpha_bar_to: Tensor) -> Tensor:
    """Move latents between two noise levels along the predicted noise (eq. 12, sigma = 0); upward it is DDIM inversion.

    z_to = sqrt(a_to) · [ z_from / sqrt(a_from) + (k(a_to) − k(a_from)) · noise ],  k(a) = sqrt(1/a − 1).

    Args:
        latents: z_from, any shape.
        noise: predicted noise, same shape.
        alpha_bar_from, alpha_bar_to: scalars in (0, 1].
    """
    slope = noise_ratio(alpha_bar_to) - noise_ratio(alpha_bar_from)
    return float(alpha_bar_to.sqrt()) * (latents / float(alpha_bar_from.sqrt()) + float(slope) * noise)


def ancestral_move(
    latents: Tensor, noise: Tensor, alpha_bar_from: Tensor, alpha_bar_to: Tensor, fresh: Tensor
) -> Tensor:
    """Move latents down one level with as much new noise as DDPM has (eq. 12 with eq. 16's sigma for eta = 1).

    It forgives errors of the network that a deterministic walk would carry to its end.

    Args:
        latents, noise, alpha_bar_from, alpha_bar_to: as for `ddim_move`, alpha_bar_to above alpha_bar_from.
        fresh: standard normal, same shape; without effect where alpha_bar_to is 1.
    """
    variance = (1 - alpha_bar_to) / (1 - alpha_bar_from) * (1 - alpha_bar_from / alpha_bar_to)
    clean = (latents - float((1 - alpha_bar_from).sqrt()) * noise) / float(alpha_bar_from.sqrt())
    kept = float((1 - alpha_bar_to - variance).clamp(min=0).sqrt())
    return float(alpha_bar_to.sqrt()) * clean + kept * noise + float(variance.sqrt()) * fresh


def noise_ratio(alpha_bar: Tensor) -> Tensor:
    """k(a) = sqrt(1/a − 1): standard deviation of the noise over the scale of the signal."""
    return (1 / alpha_bar - 1).sqrt()


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(z_t | z_0): sqrt(a)·z_0 + sqrt(1 − a)·noise, with one level per batch item.

    Args:
        latents, noise: [B, C, h, w].
        alpha_bar: [B], in (0, 1].
    """
    level = alpha_bar.to(latents).view(-1, 1, 1, 1)
    return level.sqrt() * latents + (1 - level).sqrt() * noise
