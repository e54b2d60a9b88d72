"""An AutoencoderKL whose weights are computed from the principal components of 8 x 8 patches, without training.

Its encoder and decoder are each convolution, residual blocks, group norm, SiLU, convolution. They are linear when
- every residual block ends in a zero convolution, so that it returns its input;
- two channels, v and -v, carry each value, because SiLU(v) - SiLU(-v) = v;
- two more channels hold constants K and -K, so large that they set the variance of the norm; its mean is zero.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from defect_core.pretraining.architecture import PATCH_SIZE, build_vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LOG_VARIANCE = -12.0  # of the posterior: practically none
WHITENING = 0.2
_CONSTANT = 1000.0
_RIDGE = 1e-4
_CHUNK_SIZE = 200  # images at a time, to bound the memory of the least-squares fit


def fit_linear_vae(images: NDArray[np.uint8], latent_channels: int) -> "AutoencoderKL":
    """Return an AutoencoderKL fitted to images [N, R, R, 3], frozen and in evaluation mode.

    The latents are the first principal components of a patch, partly whitened: a component of variance v gets the
    standard deviation v^WHITENING. All are scaled to a mean square of 1. Noise then hides fine detail before shading,
    as in pixel space, so sampling fixes the layout first. Fully whitened latents lose both at the same noise level.
    With WHITENING = 0.2 the standard deviations of 48 channels differ by a factor below six.

    The decoder is the least-squares prediction of a patch from the 3 x 3 neighbourhood of latents. A decoder from the
    components alone leaves visible block edges.
    """
    patches = patchify(images)
    count, width = patches.shape[0], patches.shape[1]
    flat = patches.permute(0, 2, 3, 1).reshape(-1, width).double()
    mean = flat.mean(0)
    projection = _whitened_components(flat - mean, latent_channels)
    latents = ((flat - mean) @ projection.T).reshape(count, *patches.shape[2:], latent_channels).permute(0, 3, 1, 2)
    solution = _fit_decoder(latents, patches)
    kernel = solution[:-1].T.reshape(width, latent_channels, 3, 3).float()

    vae = build_vae(latent_channels)
    _set_weights(vae, projection.float(), (-projection @ mean).float(), kernel, solution[-1].float())
    values = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(value, 5) + 0.0 for value in values.mean(1).tolist()],  # + 0.0 turns -0.0 into 0.0
        latents_std=[round(float(values.var(1).mean().sqrt()), 5)] * latent_channels,
    )
    return vae.eval().requires_grad_(False)


def patchify(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 images [N, R, R, 3] as float [N, 192, R/8, R/8] in [-1, 1], with patches folded into channels."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(pixels, PATCH_SIZE)


def _whitened_components(centred: Tensor, count: int) -> Tensor:
    """Return the projection [count, D] of centred samples [N, D] on their first components, partly whitened."""
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = values.argsort(descending=True)[:count]
    vectors = vectors[:, order]
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # the signs of eigenvectors are arbitrary
    values = values[order]
    return (vectors / values.pow(0.5 - WHITENING) / values.pow(2 * WHITENING).mean().sqrt()).T


def _fit_decoder(latents: Tensor, patches: Tensor) -> Tensor:
    """Return the ridge regression [9 C + 1, D] of patches [N, D, h, w] on neighbourhoods of latents [N, C, h, w]."""
    gram, target = torch.zeros(()), torch.zeros(())
    for part, patch in zip(latents.float().split(_CHUNK_SIZE), patches.double().split(_CHUNK_SIZE), strict=True):
        neighbourhoods = _neighbourhoods(part).double()
        gram = gram + neighbourhoods.T @ neighbourhoods
        target = target + neighbourhoods.T @ patch.permute(0, 2, 3, 1).reshape(-1, patch.shape[1])
    positions = patches.shape[0] * patches.shape[2] * patches.shape[3]
    gram += _RIDGE * positions * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, target)


def _neighbourhoods(latents: Tensor) -> Tensor:
    """Return the 3 x 3 neighbourhoods of [N, C, h, w] as [N h w, 9 C + 1], zero outside; the last column is 1."""
    windows = F.unfold(latents, 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([windows, torch.ones(len(windows), 1)], 1)


@torch.no_grad()
def _set_weights(vae: Any, projection: Tensor, offset: Tensor, kernel: Tensor, bias: Tensor) -> None:
    """Set all weights of a VAE: encoder from `projection` and `offset`, decoder from `kernel` and `bias`."""
    for name, parameter in vae.named_parameters():
        if ".conv1." in name or ".conv2." in name:  # conv1 has no effect; zeros make the file reproducible
            parameter.zero_()
    latent_channels = len(projection)
    identity, zeros = _pointwise_kernel(torch.eye(latent_channels)), torch.zeros(latent_channels)
    _set_input_layers(vae.encoder, _pointwise_kernel(projection), offset)
    moments = torch.cat([identity, torch.zeros_like(identity)])
    _set_output_layer(vae.encoder, moments, torch.cat([zeros, zeros + LOG_VARIANCE]))
    _set_input_layers(vae.decoder, identity, zeros)
    _set_output_layer(vae.decoder, kernel, bias)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(convolution.weight.shape[0])[..., None, None])
        convolution.bias.zero_()


def _pointwise_kernel(matrix: Tensor) -> Tensor:
    """Return a matrix as a 3 x 3 convolution kernel that reads the centre position only."""
    kernel = torch.zeros(*matrix.shape, 3, 3)
    kernel[..., 1, 1] = matrix
    return kernel


def _set_input_layers(network: Any, kernel: Tensor, bias: Tensor) -> None:
    """Set `conv_in` to the values, their negatives and the two constants, and `conv_norm_out` to undo its division."""
    values = len(kernel)
    conv_in, norm = network.conv_in, network.conv_norm_out
    conv_in.weight.zero_()
    conv_in.weight[:values], conv_in.weight[values : 2 * values] = kernel, -kernel
    conv_in.bias[:values], conv_in.bias[values : 2 * values] = bias, -bias
    conv_in.bias[2 * values :] = torch.tensor([_CONSTANT, -_CONSTANT])
    norm.weight.zero_()
    norm.weight[: 2 * values] = _CONSTANT * (2 / len(conv_in.bias)) ** 0.5
    norm.bias.zero_()


def _set_output_layer(network: Any, kernel: Tensor, bias: Tensor) -> None:
    """Set `conv_out` to the kernel applied to the values and its negative applied to their negatives."""
    values = kernel.shape[1]
    network.conv_out.weight.zero_()
    network.conv_out.weight[:, :values], network.conv_out.weight[:, values : 2 * values] = kernel, -kernel
    network.conv_out.bias.copy_(bias)
