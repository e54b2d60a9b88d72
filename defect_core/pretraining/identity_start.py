"""Where the denoiser starts: a network whose prediction is exactly its input.

At the noisy end the noise is almost the input, and sampling divides what is left over by sqrt(alpha_bar), 0.07 there.
A short training does not teach a U-Net to hand its input through that precisely, so the weights say it from the
start: the input travels over the outermost skip connection into the last residual block's shortcut, as pairs v, -v
(SiLU(v) - SiLU(-v) = v), with two large constants a group that make the group norm at the exit nearly constant.
All of it stays trainable; the last block adds its correction to the pairs.
"""

from typing import Any

import torch

_CONSTANT = 30.0


def start_from_identity(denoiser: Any) -> None:
    """Set the first and last layers of a UNet2DConditionModel, in place, so that it returns its input at any time.

    Needs 2 channels for every latent channel plus 2 in every group of the norm that holds some of them.
    """
    latents = denoiser.config.in_channels
    last, norm, leave = denoiser.up_blocks[-1].resnets[-1], denoiser.conv_norm_out, denoiser.conv_out
    width, size = norm.num_channels, norm.num_channels // norm.num_groups
    pairs = (size - 2) // 2
    used = -(-latents // pairs)
    if pairs < 1 or used > norm.num_groups:
        raise ValueError(f"{latents} latent channels do not fit into {norm.num_groups} groups of {size}")
    with torch.no_grad():
        denoiser.conv_in.weight[:latents] = 0
        denoiser.conv_in.bias[:latents] = 0
        denoiser.conv_in.weight[range(latents), range(latents), 1, 1] = 1
        last.conv2.weight.zero_()
        last.conv2.bias.zero_()
        leave.weight.zero_()
        leave.bias.zero_()
        shortcut = last.conv_shortcut
        shortcut.weight[: used * size] = 0
        shortcut.bias[: used * size] = 0
        skip = shortcut.in_channels - width  # the skip connection follows the block's own channels
        for channel in range(latents):
            group, place = divmod(channel, pairs)
            at = group * size + 2 * place
            shortcut.weight[at, skip + channel], shortcut.weight[at + 1, skip + channel] = 1, -1
            leave.weight[channel, at, 1, 1], leave.weight[channel, at + 1, 1, 1] = 1, -1
        for group in range(used):
            held = min(pairs, latents - group * pairs)
            end = (group + 1) * size
            shortcut.bias[end - 2], shortcut.bias[end - 1] = _CONSTANT, -_CONSTANT
            variance = 2 * (_CONSTANT**2 + held) / size
            norm.weight[group * size : end] = variance**0.5
            norm.weight[end - 2 : end] = 0
