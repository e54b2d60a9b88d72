"""Inputs of the RMP branch of SeaS (Dai et al. 2025, sec. 3.3): features of U-Net decoder and decoded image."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.backbones.load import Backbone


@contextmanager
def capture_unet_features(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Yield a list that holds the outputs of the two middle up-blocks after each call of the U-Net.

    Of four blocks these are the second and third. For Stable Diffusion they have 1280 channels at 32 × 32 and 640 at
    64 × 64 (sec. 3.3, table 14).
    """
    blocks = backbone.denoiser.up_blocks
    features: list[Tensor] = []

    def store(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        del features[: max(0, len(features) - 1)]
        features.append(output.detach())

    hooks = [blocks[index].register_forward_hook(store) for index in _middle_indices(len(blocks))]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def decode_image_features(backbone: Backbone, latents: Tensor) -> list[Tensor]:
    """Return image features finer than the latents, one per size, coarsest first.

    A VAE with up-blocks gives the output of each block that doubles the size (paper). The embedded VAE has no such
    blocks: its missing sizes are the decoded image, folded by pixel unshuffle to 2, 4, ... times the latents' side.

    Args:
        backbone: its VAE decoder is used.
        latents: clean latents [B, C, h, w].
    """
    features: list[Tensor] = []
    indices = set(_doubling_blocks(backbone))

    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: features.append(output))
        for index, block in enumerate(backbone.vae.decoder.up_blocks)
        if index in indices
    ]
    try:
        image = backbone.decode(latents)
    finally:
        for hook in hooks:
            hook.remove()
    return features + [F.pixel_unshuffle(image, backbone.resolution // side) for side in _folded_sides(backbone)]


def unet_feature_channels(backbone: Backbone) -> tuple[int, int]:
    """Return the channels of the two features of `capture_unet_features`."""
    blocks = backbone.denoiser.up_blocks
    first, second = (blocks[index].resnets[-1].out_channels for index in _middle_indices(len(blocks)))
    return first, second


def image_feature_channels(backbone: Backbone) -> list[int]:
    """Return the channels of the features of `decode_image_features`."""
    blocks = backbone.vae.decoder.up_blocks
    channels = [blocks[index].resnets[-1].out_channels for index in _doubling_blocks(backbone)]
    return channels + [3 * (backbone.resolution // side) ** 2 for side in _folded_sides(backbone)]


def _middle_indices(count: int) -> tuple[int, int]:
    """Return the indices of the two middle blocks of `count`; of a single block, its index twice."""
    return max(0, count // 2 - 1), min(count // 2, count - 1)


def _doubling_blocks(backbone: Backbone) -> list[int]:
    """Return the indices of the VAE decoder's up-blocks that double the size; the last block never does."""
    return list(range(len(backbone.vae.config.block_out_channels) - 1))


def _folded_sides(backbone: Backbone) -> list[int]:
    """Return the sides beyond those of the VAE's up-blocks, doubling up to the resolution."""
    side, sides = backbone.resolution // backbone.patch_size, []
    while side < backbone.resolution:
        side = min(2 * side, backbone.resolution)
        sides.append(side)
    return sides
