"""Disentanglement loss (Cho et al., section 3.1), inversion of the background and sampling of the defect (3.2).

z is a clean latent [B, C, h, w], m a latent mask [B, 1, h, w] in {0, 1}, C_1 = [C_def, C_bg] and C_2 = [C_m, C_bg]. The
superscript m marks latents that are zero inside the mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from defect_core.diffusion.losses import mean_over_samples
from defect_core.diffusion.samplers import Denoiser, make_ddim_step, sample
from defect_core.diffusion.schedule import Trajectory, add_noise


@dataclass(frozen=True)
class BackgroundInversion:
    """DDIM inversion of a background (eq. 8).

    Attributes:
        latents: z̃_t^m at level t, from 0 to the last inverted level; zero inside the mask.
        noises: ε_θ(z̃_t^m, t, C_2) at level t, from 0 to the last but one; zero inside the mask.
    """

    latents: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]


def disentanglement_loss(
    noise: Tensor,
    defect_noise: Tensor,
    background_noise: Tensor,
    mask: Tensor,
    balance: str = "area",
    batch_mask: Tensor | None = None,
) -> Tensor:
    """Return eq. 5, ‖m⊙(ε − ε_θ(z_t, C_1))‖² + ‖(1 − m)⊙(ε − ε_θ(z_t^m, C_2))‖², a scalar.

    Args:
        noise: ε, [B, C, h, w].
        defect_noise: ε_θ(z_t, C_1) of the matching loss, [B, C, h, w].
        background_noise: ε_θ(z_t^m, C_2) of the regularizer, [B, C, h, w].
        mask: m, [B, 1, h, w].
        balance: `area` is the mean over all elements, which is eq. 5 up to a factor. `equal` averages each term over
            its own area (not in the paper), so a small defect has the same weight as a large background.
        batch_mask: masks of the whole batch, [N, 1, h, w], if the samples are a part of it; the losses of all parts add
            up to the loss of the batch. None: the samples are the batch.
    """
    masks = mask if batch_mask is None else batch_mask
    matching = mask * (noise - defect_noise) ** 2
    regularizer = (1 - mask) * (noise - background_noise) ** 2
    if balance == "area":
        return (matching + regularizer).mean() * (len(mask) / len(masks))
    if balance == "equal_per_sample":
        return mean_over_samples(matching, mask, masks) + mean_over_samples(regularizer, 1 - mask, 1 - masks)
    channels = noise.shape[1]
    defect_area = masks.sum().clamp(min=1) * channels
    background_area = (1 - masks).sum().clamp(min=1) * channels
    return matching.sum() / defect_area + regularizer.sum() / background_area


def invert_background(
    latents: Tensor, mask: Tensor, background: Denoiser[Tensor], trajectory: Trajectory, last: int | None = None
) -> BackgroundInversion:
    """Return the DDIM inversion of z̃_0^m = (1 − m)⊙z_0 (eq. 8).

    Args:
        latents: z_0 of the normal image, [B, C, h, w].
        mask: m, [B, 1, h, w].
        background: denoiser under C_2.
        trajectory: the noise levels.
        last: the last level, from 1 to T; None: T.
    """
    outside = 1 - mask
    path, noises = [outside * latents], []

    def keep_noise(noise: Tensor, _latents: Tensor, _level: int) -> Tensor:
        noises.append(outside * noise)
        return noises[-1]

    def keep_latents(latents: Tensor, _level: int) -> Tensor:
        path.append(latents)
        return latents

    sample(
        path[0],
        background,
        trajectory,
        make_ddim_step(trajectory),
        path=range((trajectory.steps if last is None else last) + 1),
        after_noise=keep_noise,
        after_step=keep_latents,
    )
    return BackgroundInversion(tuple(path), tuple(noises))


def sample_defect(
    inversion: BackgroundInversion,
    mask: Tensor,
    noise: Tensor,
    defect: Denoiser[Tensor],
    background: Denoiser[Tensor] | None,
    trajectory: Trajectory,
    example: Tensor | None = None,
    start: int | None = None,
) -> Tensor:
    """Return z*_0, the inverted background with a defect inside the mask (eq. 9).

    It starts from z*_T = z̃_T^m + m⊙ε. The noise of each step is (1 − m)⊙ε_θ(z_t^m, C_2) + m⊙ε_θ(z*_t, C_1).

    Args:
        inversion: result of `invert_background` for the same mask and trajectory, at least up to the start level.
        mask: m, [B, 1, h, w].
        noise: standard normal, [B, C, h, w].
        defect: denoiser under C_1.
        background: denoiser under C_2. None reuses the noise of the inversion (not in the paper), which reconstructs
            the background latents z_0 up to rounding.
        trajectory: the noise levels.
        example: latents of a real defect at the position of the mask, [B, C, h, w]. Sampling starts from them,
            noised to level `start` (SDEdit, Meng et al. 2022; not in the paper). None starts from noise at level T.
        start: level from 1 to T, used with `example` only; None: T.
    """
    outside = 1 - mask
    first, inside = trajectory.steps, noise
    if example is not None:
        first = trajectory.steps if start is None else start
        inside = add_noise(example, noise, trajectory.alphas_cumprod[first].expand(len(example)))
    cached_noises = iter(inversion.noises[first - 1 :: -1])

    def denoiser(coupled: Tensor, timestep: Tensor) -> Tensor:
        latents, masked_latents = coupled
        outside_noise = next(cached_noises) if background is None else outside * background(masked_latents, timestep)
        return torch.stack([outside_noise + mask * defect(latents, timestep), outside_noise])

    masked_latents = inversion.latents[first]
    coupled = torch.stack([masked_latents + mask * inside, masked_latents])  # z* and z^m take the same steps.
    return sample(coupled, denoiser, trajectory, make_ddim_step(trajectory), path=range(first, -1, -1))[0]
