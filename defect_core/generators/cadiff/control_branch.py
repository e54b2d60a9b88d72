"""Mask-controlled branch of CADiff: a ControlNet on the mask, merged into the U-Net by self-adaptive interaction.

Source: Tong et al. 2026, sec. "Self-adaptive Spatial Control"; ControlNet is from Zhang et al. 2023.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defect_core.generators.cadiff.self_adaptive_interaction import SelfAdaptiveInteractionModule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Interaction = Literal["attention", "addition", "both"]
_HINT_FACTOR = 8  # diffusers' ControlNet downsamples its conditioning image by this factor


class ControlBranch(nn.Module):
    """A ControlNet copied from a U-Net, with one self-adaptive interaction module per residual.

    Args:
        denoiser: U-Net of diffusers; its encoder is copied.
        interaction: how a ControlNet residual y_c enters the U-Net feature y. `attention` is the paper's module,
            `addition` is y + y_c (Zhang et al. 2023), `both` is the module's output plus y_c.
        seed: decides the weights of the new layers.
    """

    def __init__(self, denoiser: "UNet2DConditionModel", interaction: Interaction, seed: int) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel

        super().__init__()
        self.interaction = interaction
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.net = ControlNetModel.from_unet(denoiser)
            # diffusers initialises the last convolution of the hint with zeros. The zero convolutions behind it already
            # keep the U-Net unchanged, and with both at zero the branch learns the mask late. The paper leaves it open.
            self.net.controlnet_cond_embedding.conv_out.reset_parameters()
            convolutions = [*self.net.controlnet_down_blocks, self.net.controlnet_mid_block]
            channels = [] if interaction == "addition" else [module.out_channels for module in convolutions]
            self.interactions = nn.ModuleList(SelfAdaptiveInteractionModule(count) for count in channels)
        self.to(next(denoiser.parameters()).device)

    def predict_noise(
        self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, text: Tensor, hint: Tensor, scale: float = 1.0
    ) -> Tensor:
        """Return the U-Net's predicted noise under the control of a mask, [B, C, h, w].

        Args:
            denoiser: the U-Net.
            latents: noisy latents [B, C, h, w].
            timesteps: int64 [B].
            text: encoded prompts [B, T, D].
            hint: mask image from `hint_image`, [B, 3, 8h, 8w] in {0, 1}.
            scale: weight of the branch in [0, 1]; 0 is the U-Net alone.
        """
        if scale == 0:
            return denoiser(latents, timesteps, text).sample
        dtype = next(self.net.parameters()).dtype  # float32 in training, even beside a half-precision U-Net
        down, mid = self.net(latents.to(dtype), timesteps, text.to(dtype), hint.to(dtype), return_dict=False)
        residuals = [_MergedResidual(self._merge(index), y_c, scale) for index, y_c in enumerate([*down, mid])]
        return denoiser(
            latents,
            timesteps,
            text,
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
        ).sample

    def _merge(self, index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (y, y_c) -> merged feature of one residual."""
        if self.interaction == "addition":
            return torch.add
        module = self.interactions[index]
        if self.interaction == "attention":
            return module
        return lambda y, y_c: module(y, y_c) + y_c


def hint_image(masks: Tensor, latent_size: int) -> Tensor:
    """Return masks [B, 1, H, W] as the ControlNet's conditioning image, float [B, 3, 8h, 8w].

    Args:
        masks: values in {0, 1}; resized to the nearest pixel where the size differs.
        latent_size: h, the side of the latents.
    """
    side = _HINT_FACTOR * latent_size
    if masks.shape[-1] != side:
        masks = F.interpolate(masks.float(), size=(side, side), mode="nearest")
    return masks.float().expand(-1, 3, -1, -1)


class _MergedResidual:
    """Replaces a ControlNet residual: where diffusers' U-Net computes y + residual, the result is the merged feature.

    diffusers offers no other hook for a merge that is not a sum.
    """

    def __init__(self, merge: Callable[[Tensor, Tensor], Tensor], y_c: Tensor, scale: float) -> None:
        self.merge, self.y_c, self.scale = merge, y_c, scale

    def __radd__(self, y: Tensor) -> Tensor:
        merged = self.merge(y.to(self.y_c), self.y_c).to(y)
        return merged if self.scale == 1 else torch.lerp(y, merged, self.scale)
