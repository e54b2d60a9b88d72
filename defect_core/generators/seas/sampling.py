"""Sampling of SeaS (Dai et al. 2025, sec. 3.4): DPM-Solver++ from a noised normal image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.guidance import combine_guidance
from defect_core.diffusion.samplers import make_dpm_solver_step, noise_from_seeds, sample
from defect_core.diffusion.schedule import add_noise, pred_original_sample
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.mask_features import capture_unet_features, decode_image_features
from defect_core.generators.seas.refined_mask_prediction import RefinedMaskPrediction
from defect_core.generators.views import to_denoiser
from defect_core.training.precision import inference_autocast

_EXTENDED_STEPS = 1500  # appendix A.3: "we use t = 1500 to perform diffusion forward on normal images"


class TokenRegion(NamedTuple):
    """Region in which the UA prompts condition the predicted noise; the normal prompt does outside.

    Attributes:
        weight: weight of the UA prompt on the grid of the latents, [B, 1, h, w] in [0, 1].
        normal_prompt: encoded normal prompt, [1, T, D].
    """

    weight: Tensor
    normal_prompt: Tensor


class Conditioning(NamedTuple):
    """Encoded prompts of a batch.

    Attributes:
        prompts: UA prompt or normal prompt of each image, [B, T, D].
        empty_prompt: empty prompt for classifier-free guidance, [1, T, D].
        region: where the prompts apply; None: everywhere (paper).
    """

    prompts: Tensor
    empty_prompt: Tensor
    region: TokenRegion | None = None


class SampledImages(NamedTuple):
    """Result of `sample_images`.

    Attributes:
        images: [B, 3, R, R] in [-1, 1]; with a residual the difference of two images, in [-2, 2].
        masks: defect probability of each pixel, [B, R, R]; None without an RMP branch.
    """

    images: Tensor
    masks: Tensor | None


@torch.no_grad()
def sample_images(
    backbone: Backbone,
    references: Tensor,
    conditioning: Conditioning,
    seeds: Sequence[int],
    config: SeasConfig,
    branch: RefinedMaskPrediction | None = None,
) -> SampledImages:
    """Sample one image per normal reference image and seed.

    With a token region and `config.adds_residual` a second trajectory starts from the same noise without the anomaly
    tokens. The result is then the difference of the two images. Changes that both trajectories make cancel.

    Args:
        backbone: the fine-tuned backbone.
        references: normal images [B, 3, R, R] in [-1, 1].
        conditioning: encoded prompts.
        seeds: seed of the noise of each image.
        config: settings.
        branch: predicts the masks; None samples normal images.
    """
    trajectory, step = make_dpm_solver_step(backbone.alphas_cumprod, config.sampling_steps)
    start = max(1, trajectory.steps - round(config.ref_strength * config.sampling_steps))
    clean = backbone.encode(references)
    noise = noise_from_seeds(list(seeds), tuple(clean.shape[1:])).to(clean)
    latents = noise_reference(backbone, clean, noise, int(trajectory.timesteps[start]), config)
    count, has_residual = len(latents), conditioning.region is not None and config.adds_residual
    if has_residual:
        latents = torch.cat([latents, latents])
    guidance_scale = config.normal_guidance_scale if branch is None else config.guidance_scale
    branch_inputs: list[tuple[tuple[Tensor, Tensor], Tensor]] = []  # U-Net features and clean latents of the last steps

    def denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
        return _predict_noise(backbone, latents, timestep, conditioning, guidance_scale)

    with inference_autocast(backbone.denoiser, compute=backbone.compute), capture_unet_features(backbone) as features:

        def record_features(noise: Tensor, latents: Tensor, level: int) -> Tensor:
            if branch is not None and level <= config.mask_average:
                first, second = (feature[-count:] for feature in features)
                alphas_cumprod = trajectory.alphas_cumprod[level].expand(count)
                original = pred_original_sample(latents[:count], noise[:count], alphas_cumprod)
                branch_inputs.append(((first, second), original))
            return noise

        latents = sample(latents, denoiser, trajectory, step, path=range(start, -1, -1), after_noise=record_features)
    masks = None
    if branch is not None:
        probabilities = [
            branch.probability(unet_features, decode_image_features(backbone, original))
            for unet_features, original in branch_inputs
        ]
        masks = torch.stack(probabilities).mean(0)
    images = backbone.decode(latents)
    if has_residual:
        images = images[:count] - images[count:]
    return SampledImages(images, masks)


def noise_reference(backbone: Backbone, clean: Tensor, noise: Tensor, timestep: int, config: SeasConfig) -> Tensor:
    """Return the noised normal images from which sampling starts, [B, C, h, w].

    `reference: paper` noises to the last step of a schedule of 1500 steps, whatever the timestep (appendix A.3). For
    Stable Diffusion the weight of the normal image is then 0.018; at the last of 1000 steps it is 0.068.
    `reference: official` does not multiply the latents by the VAE's scaling factor, which gives a weight of 0.098.

    Args:
        backbone: the backbone.
        clean: latents of the normal images, [B, C, h, w].
        noise: standard normal noise [B, C, h, w].
        timestep: first timestep of the sampling.
        config: settings.
    """
    if config.reference == "official":
        clean = clean / backbone.vae.config.scaling_factor
    if config.reference == "schedule":
        alpha_cumprod = backbone.alphas_cumprod[timestep]
    else:
        alpha_cumprod = extended_alphas_cumprod(backbone.alphas_cumprod, _EXTENDED_STEPS)[-1]
    return add_noise(clean, noise, alpha_cumprod.expand(len(clean)))


def extended_alphas_cumprod(alphas_cumprod: Tensor, steps: int) -> Tensor:
    """Return the cumulative alphas of a scaled-linear schedule with the same first and last beta, float64 [steps].

    Args:
        alphas_cumprod: cumulative alphas of a scaled-linear schedule, [N], falling.
        steps: length of the new schedule; N returns the schedule itself.
    """
    bars = alphas_cumprod.double().cpu()
    first, last = 1 - bars[0], 1 - bars[-1] / bars[-2]
    betas = torch.linspace(float(first.sqrt()), float(last.sqrt()), steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def _predict_noise(
    backbone: Backbone, latents: Tensor, timestep: Tensor, conditioning: Conditioning, guidance_scale: float
) -> Tensor:
    """Return the guided noise, from one call of the U-Net on all prompts.

    The images under their own prompts are the last of the U-Net's batch, where `record_features` reads them. Latents
    beyond the number of prompts belong to the trajectory without anomaly tokens.
    """
    prompts, empty_prompt, region = conditioning
    timestep, count = to_denoiser(backbone, timestep), len(prompts)
    parts = [(latents, empty_prompt)] if guidance_scale != 1 else []
    parts += [(latents, region.normal_prompt)] if region is not None else []
    parts += [(latents[:count], prompts)]
    texts = torch.cat([text.expand(len(part), -1, -1) for part, text in parts])
    noises = backbone.denoiser(torch.cat([part for part, _ in parts]), timestep, texts).sample.to(latents.dtype)
    *others, prompted = noises.split([len(part) for part, _ in parts])
    if region is not None:
        normal = others[-1]
        prompted = torch.cat([region.weight * prompted + (1 - region.weight) * normal[:count], normal[count:]])
    return prompted if guidance_scale == 1 else combine_guidance(others[0], (guidance_scale, prompted))
