"""SeaS' inference (paper §3.4): a noised normal image as the beginning, DPM-Solver++, masks read in the last steps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.diffusion.samplers import dpm_solver, guide, noise_from_seeds
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.seas.config import Config
from defect_core.generators.seas.mask_branch import MaskBranch, image_features, watch_features
from defect_core.generators.views import to_denoiser
from defect_core.training.loop import bf16_inference

_EXTENDED_STEPS = 1500


class Drawn(NamedTuple):
    """`images` [B, 3, R, R] in [-1, 1], or what the defect changed in them; `masks` [B, R, R], how likely each pixel is
    defect, None without a branch.
    """

    images: Tensor
    masks: Tensor | None


class Place(NamedTuple):
    """Where the defects' prompts are heard: `region` [B, 1, h, w] in 0 to 1 on the latents' grid; elsewhere it is
    `normal`, the encoded normal prompt [1, T, D].
    """

    region: Tensor
    normal: Tensor


@torch.no_grad()
def draw(
    backbone: Backbone,
    references: Tensor,
    states: Tensor,
    empty: Tensor,
    seeds: Sequence[int],
    config: Config,
    branch: MaskBranch | None = None,
    place: Place | None = None,
) -> Drawn:
    """Draw one image per reference and seed.

    Args:
        references: normal images [B, 3, R, R] in [-1, 1].
        states: encoded prompts [B, T, D].
        empty: the encoded empty prompt [1, T, D], for the guidance.
        seeds: B, each decides the noise of its image alone.
        branch: reads the masks; None for normal images.
        place: None where the prompts are heard everywhere. With it and `config.adds_difference` there is a second walk
            from the same noise without any defect, and the images are the difference of the two, -2 to 2.
    """
    solver = dpm_solver(backbone.schedule, config.sampling_steps)
    skipped = round(config.ref_strength * config.sampling_steps)
    times = solver.timesteps[min(skipped, len(solver.timesteps) - 1) :]
    solver.set_begin_index(len(solver.timesteps) - len(times))
    clean = backbone.encode(references)
    noise = noise_from_seeds(list(seeds), tuple(clean.shape[1:])).to(clean)
    latents = begin_from(backbone, clean, noise, int(times[0]), config)
    count, twice = len(latents), place is not None and config.adds_difference
    if twice:
        latents = torch.cat([latents, latents])
    scale = config.normal_guidance_scale if branch is None else config.guidance_scale
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # of the last steps: two features of the U-Net, the clean latents
    with bf16_inference(backbone.denoiser):
        for index, time in enumerate(times):
            with watch_features(backbone) as features:
                predicted = _guided(backbone, latents, time, states, empty, scale, place)
            if branch is not None and index >= len(times) - config.mask_average:
                level = backbone.schedule[int(time)].expand(count)
                first, second = (feature[-count:] for feature in features)
                seen.append((first, second, clean_latents(latents[:count], predicted[:count], level)))
            latents = solver.step(predicted, time, latents).prev_sample
    found = []
    if branch is not None:
        found = [branch.probability((f, s), image_features(backbone, clean)) for f, s, clean in seen]
    images = backbone.decode(latents)
    if twice:
        images = images[:count] - images[count:]
    return Drawn(images, torch.stack(found).mean(0) if found else None)


def begin_from(backbone: Backbone, clean: Tensor, noise: Tensor, time: int, config: Config) -> Tensor:
    """The noised reference the sampling begins at, at `time` of the schedule.

    `compat` takes the unscaled latent and the last level of a schedule of 1500 steps, whatever the time: in Stable
    Diffusion's latents that lets 1.4 times as much of the reference through as the last of 1000 steps.
    """
    if config.reference == "compat":
        clean = clean / backbone.vae.config.scaling_factor
        level = extended_alpha_bars(backbone.schedule, _EXTENDED_STEPS)[-1]
    else:
        level = backbone.schedule[time]
    return add_noise(clean, noise, level.expand(len(clean)))


def extended_alpha_bars(schedule: Tensor, steps: int) -> Tensor:
    """Cumulative alphas, float64 [steps], of a scaled-linear schedule with the same first and last beta.

    Args:
        schedule: cumulative alphas [N] of a scaled-linear schedule, falling.
        steps: with N, the schedule itself comes back.
    """
    bars = schedule.double().cpu()
    first, last = 1 - bars[0], 1 - bars[-1] / bars[-2]
    betas = torch.linspace(float(first.sqrt()), float(last.sqrt()), steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def clean_latents(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean latents that predicted noise implies; one level per image, alpha_bar [B]."""
    level = alpha_bar.to(latents).view(-1, 1, 1, 1)
    return (latents - (1 - level).sqrt() * noise) / level.sqrt()


def _guided(
    backbone: Backbone,
    latents: Tensor,
    time: Tensor,
    states: Tensor,
    empty: Tensor,
    scale: float,
    place: Place | None,
) -> Tensor:
    """Predicted noise; the images under their prompts are the last of the U-Net's batch.

    Latents beyond the number of prompts are those of a walk without defects.
    """
    time, count = to_denoiser(backbone, time), len(states)
    parts = [(latents, empty)] if scale != 1 else []
    parts += [(latents, place.normal)] if place is not None else []
    parts += [(latents[:count], states)]
    texts = torch.cat([text.expand(len(part), -1, -1) for part, text in parts])
    noises = backbone.denoiser(torch.cat([part for part, _ in parts]), time, texts).sample.to(latents.dtype)
    *others, prompted = noises.split([len(part) for part, _ in parts])
    if place is not None:
        normal = others[-1]
        prompted = torch.cat([place.region * prompted + (1 - place.region) * normal[:count], normal[count:]])
    return prompted if scale == 1 else guide(others[0], (scale, prompted))
