"""The two pure functions of the method: invert a normal latent around a hole, and draw a defect into it.

Source: "Revisiting DDIM Inversion for Controlling Defect Generation by Disentangling the Background" (Cho et al.).
z is a clean latent [B, C, h, w], m a latent mask [B, 1, h, w] in {0, 1}; superscript m marks the branch whose
mask region is zero. A noise model is `(latents, timestep) -> predicted noise`, both [B, C, h, w].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from defect_core.diffusion.schedule import Trajectory, add_noise, ddim_move

NoiseModel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inverted:
    """What inversion leaves behind.

    Attributes:
        path: z̃_t^m from t = 0 up to T or the level asked for, zero inside the mask.
        noises: the background predictions on that way, noises[t] made at level t; `cached` mode reuses them.
    """

    path: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]


def masked_loss(
    noise: Tensor, defect_noise: Tensor, background_noise: Tensor, mask: Tensor, balance: str = "area"
) -> Tensor:
    """‖m⊙(ε − ε_θ(z_t, C_1))‖² + ‖(1 − m)⊙(ε − ε_θ(z_t^m, C_2))‖² (paper eq. 5).

    Args:
        noise, defect_noise, background_noise: ε and the two predictions, [B, C, h, w].
        mask: m, [B, 1, h, w].
        balance: `area` takes the mean over all elements (the paper's sum up to a factor); `equal` averages each
            half over its own area first, so that a small defect weighs as much as a large background.
    """
    inside = mask * (noise - defect_noise) ** 2
    outside = (1 - mask) * (noise - background_noise) ** 2
    if balance == "area":
        return (inside + outside).mean()
    channels = noise.shape[1]
    area = mask.sum().clamp(min=1) * channels
    rest = (1 - mask).sum().clamp(min=1) * channels
    return inside.sum() / area + outside.sum() / rest


def invert(
    latents: Tensor, mask: Tensor, background: NoiseModel, trajectory: Trajectory, last: int | None = None
) -> Inverted:
    """DDIM inversion of the background alone, from z̃_0^m = (1 − m)⊙z_0 up to level `last` (None: T).

    The hole stays exactly zero.
    """
    outside = 1 - mask
    path, noises = [outside * latents], []
    for t in range(1, (trajectory.steps if last is None else last) + 1):
        noise = outside * background(path[-1], trajectory.timesteps[t - 1])
        noises.append(noise)
        path.append(ddim_move(path[-1], noise, trajectory.alpha_bars[t - 1], trajectory.alpha_bars[t]))
    return Inverted(tuple(path), tuple(noises))


def draw(
    inverted: Inverted,
    mask: Tensor,
    noise: Tensor,
    defect: NoiseModel,
    background: NoiseModel | None,
    trajectory: Trajectory,
    example: Tensor | None = None,
    start: int | None = None,
) -> Tensor:
    """Sample z*_0: the inverted background outside the mask, a defect grown from `noise` inside.

    z*_T = z̃_T^m + m⊙noise; at each level ε̂ = (1 − m)⊙ε_θ(z_t^m, C_2) + m⊙ε_θ(z*_t, C_1).

    Args:
        inverted: what `invert` returned for the same mask, up to `start` at least.
        mask: m, [B, 1, h, w].
        noise: [B, C, h, w], standard normal.
        defect: noise model under C_1.
        background: noise model under C_2 (paper mode), or None to reuse the inversion's predictions, which leads
            the background latent back to z_0 up to rounding (cached mode).
        trajectory: the one of the inversion.
        example: latents of a real defect in this place, noised to level `start` inside the mask, from where the walk
            begins (SDEdit, Meng et al. 2022). Not the paper's; None begins from noise at T, as the paper does.
        start: level in 1 … T, with `example` only.
    """
    outside = 1 - mask
    first, inside = trajectory.steps, noise
    if example is not None:
        first = trajectory.steps if start is None else start
        inside = add_noise(example, noise, trajectory.alpha_bars[first].expand(len(example)))
    hole = inverted.path[first]
    current = hole + mask * inside
    for t in range(first, 0, -1):
        step = trajectory.timesteps[t]
        kept = inverted.noises[t - 1] if background is None else outside * background(hole, step)
        mixed = kept + mask * defect(current, step)
        levels = trajectory.alpha_bars[t], trajectory.alpha_bars[t - 1]
        current, hole = ddim_move(current, mixed, *levels), ddim_move(hole, kept, *levels)
    return current


def sample_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [len(seeds), *shape], each sample from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
