"""Initialise the denoiser so that its prediction equals its input.

At high noise levels the noise is almost equal to the input. Sampling there divides the remaining error by
sqrt(alpha_bar), which falls to 0.07. A short training does not teach a U-Net to pass its input through that precisely,
so the initial weights do it. The input travels over the outermost skip connection into the shortcut of the last
residual block, as pairs (v, -v), because SiLU(v) - SiLU(-v) = v. Each group of the output norm also holds two large
constants, which make its variance nearly constant. All weights stay trainable: the last block adds its correction to
the pairs.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_CONSTANT = 30.0  # much larger than a latent value, so that it sets the variance of its group


def initialise_as_identity(denoiser: "UNet2DConditionModel") -> None:
    """Set the first and the last layers in place so that the network returns its input at every timestep.

    Raises:
        ValueError: the output norm has fewer than 2 channels per latent channel and 2 more per group in use.
    """
    network: Any = denoiser  # diffusers does not declare the types of these layers
    latent_channels = network.config.in_channels
    last_block, norm, conv_out = network.up_blocks[-1].resnets[-1], network.conv_norm_out, network.conv_out
    width, group_size = norm.num_channels, norm.num_channels // norm.num_groups
    pairs_per_group = (group_size - 2) // 2
    used_groups = -(-latent_channels // pairs_per_group)
    if pairs_per_group < 1 or used_groups > norm.num_groups:
        raise ValueError(f"{latent_channels} latent channels do not fit into {norm.num_groups} groups of {group_size}")
    with torch.no_grad():
        network.conv_in.weight[:latent_channels] = 0
        network.conv_in.bias[:latent_channels] = 0
        network.conv_in.weight[range(latent_channels), range(latent_channels), 1, 1] = 1
        for layer in (last_block.conv2, conv_out):
            layer.weight.zero_()
            layer.bias.zero_()
        shortcut = last_block.conv_shortcut
        shortcut.weight[: used_groups * group_size] = 0
        shortcut.bias[: used_groups * group_size] = 0
        skip = shortcut.in_channels - width  # the skip connection follows the channels of the block itself
        for channel in range(latent_channels):
            group, position = divmod(channel, pairs_per_group)
            first = group * group_size + 2 * position
            shortcut.weight[first, skip + channel], shortcut.weight[first + 1, skip + channel] = 1, -1
            conv_out.weight[channel, first, 1, 1], conv_out.weight[channel, first + 1, 1, 1] = 1, -1
        for group in range(used_groups):
            pairs = min(pairs_per_group, latent_channels - group * pairs_per_group)
            end = (group + 1) * group_size
            shortcut.bias[end - 2], shortcut.bias[end - 1] = _CONSTANT, -_CONSTANT
            variance = 2 * (_CONSTANT**2 + pairs) / group_size
            norm.weight[group * group_size : end] = variance**0.5
            norm.weight[end - 2 : end] = 0
