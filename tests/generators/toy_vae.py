"""A VAE without weights, for tests that look at generated pixels: it averages 8 × 8 blocks and enlarges them again."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

SCALE = 1.0  # of a normalised latent; block-constant images have latents of about unit size


class _Doubling(nn.Module):
    def __init__(self, is_last: bool) -> None:
        super().__init__()
        self.is_last, self.resnets = is_last, [SimpleNamespace(out_channels=4)]

    def forward(self, x: Tensor) -> Tensor:
        return x if self.is_last else F.interpolate(x, scale_factor=2, mode="nearest")


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList(_Doubling(index == 3) for index in range(4))


class ToyVAE(nn.Module):
    """Latents are the three channels of 8 × 8 blocks and their mean; decoding is exact for block-constant images."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict(block_out_channels=(4,) * 4, latent_channels=4, scaling_factor=SCALE)
        self.decoder = _Decoder()

    def encode(self, images: Tensor) -> Any:
        """Return the latents of images [B, 3, R, R] as the mean of a distribution."""
        blocks = F.avg_pool2d(images, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=torch.cat([blocks, blocks.mean(1, keepdim=True)], 1)))

    def decode(self, latents: Tensor) -> Any:
        """Return the images of latents [B, 4, h, h]."""
        for block in self.decoder.up_blocks:
            latents = block(latents)
        return SimpleNamespace(sample=latents[:, :3])
