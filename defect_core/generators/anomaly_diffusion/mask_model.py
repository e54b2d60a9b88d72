"""The learned mask generator: textual inversion on mask images, and the rules for what it draws (paper §3.4).

The words of a defect learn what its masks look like, as pictures; sampled back, thresholded and checked, they give
shapes of which there was no example.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.diffusion.guidance import combine_guidance
from defect_core.diffusion.losses import noise_loss
from defect_core.diffusion.mask_rules import threshold, touches_border_too_much
from defect_core.diffusion.samplers import NoiseStream, make_ddim_step, sample
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import ConceptTokens, encode_prompts
from defect_core.generators.anomaly_diffusion.config import MaskModelConfig
from defect_core.generators.base import Mask
from defect_core.generators.canvas import Window, resize_to_window
from defect_core.generators.views import LatentBank, View, encode_views, to_denoiser
from defect_core.training.loop import bf16_inference, train


def mask_images(backbone: Backbone, views: Sequence[View], concepts: Sequence[str]) -> LatentBank:
    """The masks of views, encoded as black and white pictures."""
    pictures = [View(np.repeat(view.mask[..., None] * np.uint8(255), 3, -1), view.mask, view.defect) for view in views]
    return encode_views(backbone, pictures, concepts)


def fit_masks(
    backbone: Backbone,
    tokens: ConceptTokens,
    bank: LatentBank,
    config: MaskModelConfig,
    batch_size: int,
    seed: int,
    work_dir: Path,
    label: str,
) -> list[float]:
    """Learn each concept's words e_m with ‖ε − ε_θ(z_t, t, e_m)‖²; the networks stay frozen.

    Args:
        tokens: trained in place; its names are in the order of the bank's numbers.
        bank: from `mask_images`.

    Returns:
        The loss of every step.
    """

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(bank.latents), (batch_size,), generator=generator)
        noise = to_denoiser(backbone, torch.randn(chosen.shape + bank.latents.shape[1:], generator=generator))
        times = torch.randint(len(backbone.alphas_cumprod), chosen.shape, generator=generator)
        words = [tokens[tokens.names[int(number)]] for number in bank.defects[chosen]]
        text = encode_prompts(backbone, [config.prompt] * batch_size, [{"shape": word} for word in words]).states
        noised = add_noise(to_denoiser(backbone, bank.latents[chosen]), noise, backbone.alphas_cumprod[times])
        return noise_loss(noise, backbone.denoiser(noised, to_denoiser(backbone, times), text).sample)

    return train(
        nn.ModuleDict({"tokens": tokens}),
        loss,
        steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        seed=seed,
        work_dir=work_dir,
        label=label,
    )


@torch.no_grad()
def draw_masks(
    backbone: Backbone, words: Sequence[Tensor], config: MaskModelConfig, seeds: Sequence[int]
) -> list[Mask | None]:
    """One mask for each seed, bool [R, R] in the backbone's resolution; None where the rules reject it.

    Args:
        words: e_m, [k', D], for each seed.
    """
    count, size = len(seeds), backbone.latent_size
    told = encode_prompts(backbone, [config.prompt] * count, [{"shape": word} for word in words]).states
    empty = backbone.encode_text([""]).expand(count, -1, -1)
    noise = NoiseStream(seeds, (backbone.latent_channels, size, size), to_denoiser(backbone, torch.zeros(1)))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        def under(text: Tensor) -> Tensor:
            return backbone.denoiser(latents, timestep.to(latents.device), text).sample.to(latents.dtype)

        return (
            under(told)
            if config.guidance_scale == 1
            else combine_guidance(under(empty), (config.guidance_scale, under(told)))
        )

    trajectory = make_trajectory(backbone.alphas_cumprod, config.sampling_steps)
    with bf16_inference(backbone.denoiser):
        drawn = sample(noise(), predict, trajectory, make_ddim_step(trajectory, 1.0, noise))
    pictures = backbone.decode(drawn)
    grey = pictures.float().mean(1).cpu().numpy()
    return [accept(threshold(picture, config.threshold), config.border_share) for picture in grey]


def accept(mask: Mask, border_share: float) -> Mask | None:
    """The mask, or None if it is empty or frames the picture (see `touches_border_too_much`)."""
    return mask if mask.any() and not touches_border_too_much(mask, border_share) else None


def move_mask(shape: Mask, window: Window, given: Mask) -> Mask | None:
    """A drawn shape at its window's size, its box centred where the given mask's is; None if nothing stays in view.

    Args:
        shape: bool [R, R].
        window: of the image that `given` belongs to.
        given: bool [H, W], not empty.
    """
    shown = resize_to_window(shape.astype(np.float32), window) > 0.5
    if not shown.any():
        return None
    rows, columns = np.nonzero(shown)
    top, left = _centre(given) - _centre(shown)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < given.shape[0]) & (columns >= 0) & (columns < given.shape[1])
    moved = np.zeros_like(given)
    moved[rows[inside], columns[inside]] = True
    return moved if moved.any() else None


def _centre(mask: Mask) -> np.ndarray:
    """Middle of the bounding box, int [2]."""
    return np.array([(axis.min() + axis.max()) // 2 for axis in np.nonzero(mask)])
