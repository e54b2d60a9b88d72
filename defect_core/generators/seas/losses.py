"""Loss of separation and sharing fine-tuning, the first training stage of SeaS (Dai et al. 2025, sec. 3.2, eq. 3-6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.seas.alignment import (
    TokenMaps,
    decoupled_anomaly_alignment_loss,
    encoder_attention_maps,
    mask_pyramid,
)
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt, token_groups
from defect_core.generators.views import to_denoiser
from defect_core.training.precision import training_autocast


@dataclass(frozen=True)
class MixedBatch:
    """B defect images followed by B normal images (mixed training, sec. 3.2).

    Attributes:
        latents: clean latents [2B, C, h, w].
        masks: masks of the B defect images, [B, 1, R, R] in {0, 1}.
        defects: defects of the B defect images.
        noise: standard normal noise [2B, C, h, w].
        timesteps: int64 [2B].
    """

    latents: Tensor
    masks: Tensor
    defects: Sequence[str]
    noise: Tensor
    timesteps: Tensor

    def select(self, start: int, stop: int) -> "MixedBatch":
        """Return the defect images from `start` to `stop` and the normal images at the same positions."""
        count = len(self.defects)
        rows = torch.arange(count)[start:stop]
        rows = torch.cat([rows, rows + count])
        masks, defects = self.masks[start:stop], self.defects[start:stop]
        return MixedBatch(self.latents[rows], masks, defects, self.noise[rows], self.timesteps[rows])

    def split(self, parts: int) -> list["MixedBatch"]:
        """Return the batch in at most this many parts of equal size, whose gradients are accumulated."""
        count = len(self.defects)
        size = -(-count // parts)
        return [self] if parts == 1 else [self.select(start, start + size) for start in range(0, count, size)]


class LossTerms(NamedTuple):
    """Terms of the loss L = L_df + L_ob (eq. 6), with the maps and masks of the DA loss.

    Attributes:
        defect_noise: noise loss of the defect images (eq. 4, second term).
        anomaly_alignment: weighted DA loss (eq. 3).
        normal_alignment: Normal-image Alignment (NA) loss L_ob (eq. 5).
        maps: attention maps of the defect images.
        masks: masks by side, as in `mask_pyramid`.
    """

    defect_noise: Tensor
    anomaly_alignment: Tensor
    normal_alignment: Tensor
    maps: TokenMaps
    masks: dict[int, Tensor]

    @property
    def total(self) -> Tensor:
        """The loss L of eq. 6, a scalar."""
        return self.defect_noise + self.anomaly_alignment + self.normal_alignment


def separation_and_sharing_loss(
    backbone: Backbone,
    prompt: UnbalancedAbnormalPrompt,
    control: AttentionControl,
    sides: Sequence[int],
    batch: MixedBatch,
    config: SeasConfig,
) -> LossTerms:
    """Return all terms of eq. 6 from one call of the U-Net on the mixed batch.

    With `alignment: paper` every norm of eq. 3 to 5 is divided by the C·h·w elements of one latent. This scales the
    whole loss, and the noise losses become means. With `alignment: official` each norm is a mean over its own elements.

    Args:
        backbone: backbone of the trained U-Net.
        prompt: tokens of the product.
        control: attention control of the U-Net.
        sides: sides of the aligned attention layers.
        batch: defect and normal images.
        config: settings.
    """
    count = len(batch.defects)
    prompts = prompt.encode(backbone, [(name,) for name in batch.defects] + [()] * (len(batch.latents) - count))
    alphas_cumprod = backbone.alphas_cumprod[batch.timesteps]
    latents, noise = to_denoiser(backbone, batch.latents), to_denoiser(backbone, batch.noise)
    softmax = "tokens" if config.alignment == "paper" else "pixels"
    with (
        training_autocast(backbone.device, backbone.latent_size, compute=backbone.compute),
        control.capture(token_groups(prompts), softmax, sides) as captured,
    ):
        noised, timesteps = add_noise(latents, noise, alphas_cumprod), to_denoiser(backbone, batch.timesteps)
        predicted = backbone.denoiser(noised, timesteps, prompts.states).sample
    maps = encoder_attention_maps(captured.layers, count)
    masks = mask_pyramid(to_denoiser(backbone, batch.masks), backbone.latent_size, maps.anomaly, config.alignment)
    alignment = decoupled_anomaly_alignment_loss(maps, masks, config.alignment)
    if config.alignment == "paper":
        alignment = alignment / latents[0].numel()
    weight = alphas_cumprod.rsqrt() if config.noise_weighting == "velocity" else torch.ones_like(alphas_cumprod)
    weight = to_denoiser(backbone, weight)[:, None, None, None]
    noise, predicted = weight * noise, weight * predicted.float()
    return LossTerms(
        defect_noise_loss(noise[:count], predicted[:count], batch.masks, config),
        config.alignment_weight * alignment,
        noise_loss(noise[count:], predicted[count:]),
        maps,
        masks,
    )


def defect_noise_loss(noise: Tensor, predicted: Tensor, masks: Tensor, config: SeasConfig) -> Tensor:
    """Return the noise loss of the defect images (eq. 4, second term), a scalar.

    `balance: image` is the mean over the image; `balance: equal` the mean of the means inside and outside the mask.
    """
    if config.balance == "image":
        return noise_loss(noise, predicted)
    inside = resize_mask(masks, noise.shape[-1], "max").to(noise)
    mask_loss, background_loss = (noise_loss(noise, predicted, m, "masked_mean") for m in (inside, 1 - inside))
    return (mask_loss + background_loss) / 2
