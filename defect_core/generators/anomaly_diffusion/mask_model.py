"""The mask model: textual inversion on images of masks, and the rules that sampled masks must pass (paper §3.4).

The mask tokens of a defect type learn what its masks look like as black and white images. Sampled images are turned
into masks by a threshold, which gives shapes without a real example.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.diffusion.guidance import combine_guidance
from defect_core.diffusion.losses import noise_loss
from defect_core.diffusion.mask_rules import touches_border_too_much
from defect_core.diffusion.samplers import NoiseStream, make_ddim_step, sample
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import ConceptTokens, encode_prompts
from defect_core.generators.anomaly_diffusion.config import MaskModelConfig
from defect_core.generators.base import Image, Mask
from defect_core.generators.canvas import Window, resize_to_window
from defect_core.generators.views import View, ViewSource, to_denoiser
from defect_core.training.loop import TrainingConfig, train
from defect_core.training.precision import inference_autocast


def render_mask(view: View) -> Image:
    """Return the mask of a view as a black and white image, uint8 [R, R, 3]."""
    return np.repeat(view.mask[..., None] * np.uint8(255), 3, -1)


def fit_mask_tokens(
    backbone: Backbone,
    tokens: ConceptTokens,
    make_views: Callable[[str | None], ViewSource],
    config: MaskModelConfig,
    batch_size: int,
    seed: int,
    work_dir: Path,
    label: str,
) -> list[float]:
    """Train each concept's mask tokens e_m on ‖ε − ε_θ(z_t, t, e_m)‖² and return the loss of every step.

    The networks stay frozen. With `steps_per_defect` each concept is trained in a separate run, as in the paper.

    Args:
        backbone: the frozen networks.
        tokens: trained in place.
        make_views: concept, or None for all -> views whose latents are those of `render_mask`.
        config: settings of the mask model.
        batch_size: masks per step.
        seed: the only source of randomness.
        work_dir: folder for checkpoints.
        label: title of the progress bar.
    """
    losses: list[float] = []
    for index, name in enumerate(tokens.names if config.steps_per_defect is not None else (None,)):
        for other, rows in tokens.embeddings.items():
            rows.requires_grad_(name in (None, other))
        training = TrainingConfig(
            config.steps_per_defect or config.steps,
            config.learning_rate,
            weight_decay=0.0,
            max_grad_norm=config.max_grad_norm,
            schedule=config.schedule,
        )
        losses += train(
            nn.ModuleDict({"tokens": tokens}),
            _make_loss(backbone, tokens, make_views(name), config.prompt, batch_size),
            training,
            seed=seed + index,
            work_dir=work_dir if name is None else work_dir / str(index),
            label=label if name is None else f"{label}: {name}",
            compute=backbone.compute,
        )
    tokens.requires_grad_(True)
    return losses


def _make_loss(
    backbone: Backbone, tokens: ConceptTokens, views: ViewSource, prompt: str, batch_size: int
) -> Callable[[int, torch.Generator], Tensor]:
    def loss(_step: int, generator: torch.Generator) -> Tensor:
        batch = views.batch(batch_size, generator)
        noise = to_denoiser(backbone, torch.randn(batch.latents.shape, generator=generator))
        times = torch.randint(len(backbone.alphas_cumprod), (batch_size,), generator=generator)
        text = encode_prompts(backbone, [prompt] * batch_size, [{"shape": tokens[name]} for name in batch.defects])
        noised = add_noise(to_denoiser(backbone, batch.latents), noise, backbone.alphas_cumprod[times])
        return noise_loss(noise, backbone.denoiser(noised, to_denoiser(backbone, times), text.states).sample)

    return loss


@torch.no_grad()
def generate_masks(
    backbone: Backbone, tokens: Sequence[Tensor], config: MaskModelConfig, seeds: Sequence[int]
) -> list[Mask | None]:
    """Return one mask per seed, bool [R, R] at the backbone's resolution, or None where the rules reject it.

    Args:
        backbone: the networks.
        tokens: e_m, [k', D], one per seed.
        config: settings of the mask model.
        seeds: B seeds, one per mask.
    """
    count, size = len(seeds), backbone.latent_size
    slots = [{"shape": embedding} for embedding in tokens]
    conditional = encode_prompts(backbone, [config.prompt] * count, slots).states
    unconditional = backbone.encode_text([""]).expand(count, -1, -1)
    noise = NoiseStream(seeds, (backbone.latent_channels, size, size), to_denoiser(backbone, torch.zeros(1)))

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        def predict(text: Tensor) -> Tensor:
            return backbone.denoiser(latents, timestep.to(latents.device), text).sample.to(latents.dtype)

        if config.guidance_scale == 1:
            return predict(conditional)
        return combine_guidance(predict(unconditional), (config.guidance_scale, predict(conditional)))

    trajectory = make_trajectory(backbone.alphas_cumprod, config.sampling_steps)
    with inference_autocast(backbone.denoiser, compute=backbone.compute):
        latents = sample(noise(), denoise, trajectory, make_ddim_step(trajectory, 1.0, noise))
    gray = backbone.decode(latents).float().mean(1).cpu().numpy()
    masks = [image > config.threshold for image in gray]
    return [mask if is_valid_mask(mask, config.border_fraction) else None for mask in masks]


def is_valid_mask(mask: Mask, border_fraction: float) -> bool:
    """Return whether a mask is not empty and does not fill the image's border (see `touches_border_too_much`)."""
    return bool(mask.any()) and not touches_border_too_much(mask, border_fraction)


def move_mask(shape: Mask, window: Window, target: Mask, keep_position: bool = False) -> Mask | None:
    """Return a sampled mask at the size of its window.

    Args:
        shape: sampled mask, bool [R, R].
        window: of the image that `target` belongs to.
        target: bool [H, W], not empty.
        keep_position: whether the mask stays where it was sampled (paper); else it is centred on the target mask's
            bounding box.

    Returns:
        bool [H, W], or None if no pixel stays inside the image.
    """
    resized = resize_to_window(shape.astype(np.float32), window) > 0.5
    if not resized.any():
        return None
    rows, columns = np.nonzero(resized)
    top, left = (window.top, window.left) if keep_position else _centre(target) - _centre(resized)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < target.shape[0]) & (columns >= 0) & (columns < target.shape[1])
    moved = np.zeros_like(target)
    moved[rows[inside], columns[inside]] = True
    return moved if moved.any() else None


def _centre(mask: Mask) -> np.ndarray:
    """Return the centre of the bounding box, int [2]."""
    return np.array([(axis.min() + axis.max()) // 2 for axis in np.nonzero(mask)])
