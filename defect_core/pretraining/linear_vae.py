"""An AutoencoderKL whose weights are computed, not trained: principal components of 8 x 8 patches.

Its networks are convolution, residual blocks, group norm, SiLU, convolution. They act linearly when
- every residual block ends in a zero convolution (it returns its input), and what precedes it is zero, too;
- each value v is carried by two channels, v and -v, since SiLU(v) - SiLU(-v) = v;
- two more channels hold the constants K and -K, so large that the norm's variance is theirs and its mean is zero.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.backbones.architecture import PATCH_SIZE, build_vae

LOG_VARIANCE = -12.0
WHITENING = 0.2
_CONSTANT = 1000.0
_RIDGE = 1e-4
_AT_ONCE = 200  # pictures


def fit_vae(images: NDArray[np.uint8], latent_channels: int) -> Any:
    """Fit the autoencoder to images [N, R, R, 3].

    Latents are the first principal components of a patch, whitened in part: a component of variance v gets the
    deviation v^WHITENING, all scaled to a mean square of 1. Noise then drowns fine detail before it drowns shading, as
    it does in pixels, so sampling settles the layout first; fully whitened latents lose both at once. With 0.2 the
    deviations of 48 channels lie within a factor of six, and so does the noise level at which each is settled.
    Their decoder is the least-squares prediction of the patch from its own and its eight neighbours' latents (plain
    components leave visible block edges).
    """
    patches = fold(images)
    count, width = patches.shape[0], patches.shape[1]
    flat = patches.permute(0, 2, 3, 1).reshape(-1, width).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    order = values.argsort(descending=True)[:latent_channels]
    vectors = vectors[:, order]
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # eigenvectors' signs are arbitrary; fix them
    values = values[order]
    project = (vectors / values.pow(0.5 - WHITENING) / values.pow(2 * WHITENING).mean().sqrt()).T
    latents = ((flat - mean) @ project.T).reshape(count, *patches.shape[2:], latent_channels).permute(0, 3, 1, 2)
    gram, target = 0.0, 0.0
    for part, patch in zip(latents.float().split(_AT_ONCE), patches.double().split(_AT_ONCE), strict=True):
        near = _neighbourhoods(part).double()
        gram = gram + near.T @ near
        target = target + near.T @ patch.permute(0, 2, 3, 1).reshape(-1, width)
    gram += _RIDGE * len(flat) * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, target)
    kernel = solution[:-1].T.reshape(width, latent_channels, 3, 3).float()

    vae = build_vae(latent_channels)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if ".conv1." in name or ".conv2." in name:  # before the zero convolution nothing counts, but bytes do
                parameter.zero_()
        _fill_half(vae.encoder, _centre(project.float()), (-project @ mean).float())
        first = _centre(torch.eye(latent_channels))
        zeros = torch.zeros(latent_channels)
        _fill_exit(vae.encoder, torch.cat([first, torch.zeros_like(first)]), torch.cat([zeros, zeros + LOG_VARIANCE]))
        _fill_half(vae.decoder, first, zeros)
        _fill_exit(vae.decoder, kernel, solution[-1].float())
        for convolution in (vae.quant_conv, vae.post_quant_conv):
            convolution.weight.copy_(torch.eye(convolution.weight.shape[0])[..., None, None])
            convolution.bias.zero_()
    spread = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(value, 5) + 0.0 for value in spread.mean(1).tolist()],  # + 0.0: no -0.0
        latents_std=[round(float(spread.var(1).mean().sqrt()), 5)] * latent_channels,
    )
    return vae.eval().requires_grad_(False)


def fold(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, R, R, 3] to float [N, 192, R/8, R/8] in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(pixels, PATCH_SIZE)


def _neighbourhoods(latents: Tensor) -> Tensor:
    """[N, C, h, w] to [N h w, 9 C + 1], zero outside the picture as the convolution pads; the last column is 1."""
    near = F.unfold(latents, 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([near, torch.ones(len(near), 1)], 1)


def _centre(matrix: Tensor) -> Tensor:
    """A matrix as a 3 x 3 convolution kernel that looks at the middle only."""
    kernel = torch.zeros(*matrix.shape, 3, 3)
    kernel[..., 1, 1] = matrix
    return kernel


def _fill_half(half: nn.Module, kernel: Tensor, bias: Tensor) -> None:
    """Entry of the encoder or decoder: values, their negatives, and the two constants; and the norm at its exit."""
    values = len(kernel)
    entry, norm = half.conv_in, half.conv_norm_out
    entry.weight.zero_()
    entry.weight[:values], entry.weight[values : 2 * values] = kernel, -kernel
    entry.bias[:values], entry.bias[values : 2 * values] = bias, -bias
    entry.bias[2 * values :] = torch.tensor([_CONSTANT, -_CONSTANT])
    norm.weight.zero_()
    norm.weight[: 2 * values] = _CONSTANT * (2 / len(entry.bias)) ** 0.5  # undoes the division by the deviation
    norm.bias.zero_()


def _fill_exit(half: nn.Module, kernel: Tensor, bias: Tensor) -> None:
    values = kernel.shape[1]
    half.conv_out.weight.zero_()
    half.conv_out.weight[:, :values], half.conv_out.weight[:, values : 2 * values] = kernel, -kernel
    half.conv_out.bias.copy_(bias)
