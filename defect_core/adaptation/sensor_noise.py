"""Sensor noise, which a denoiser removes from its samples: estimated on flat blocks, and added again.

The idea is that of film grain synthesis for video (Norkin and Birkbeck 2018, "Film grain synthesis for AV1 video
codec"): the noise that flat blocks of the photographs have and those of the samples lack is generated as Gaussian
noise. Here it has the measured spectrum, also between the channels, instead of an autoregressive model, and it does not
depend on the brightness.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from defect_core.generators.base import Image

SIDE, STRIDE = 16, 8  # of the blocks, in pixels
FLAT_FRACTION = 0.5  # of the blocks of an image: those with the smallest variance


def estimate_sensor_noise(real: Sequence[Image], sampled: Sequence[Image]) -> Tensor:
    """Return the kernel that turns white noise into the sensor noise that real images have and sampled ones lack.

    Args:
        real: uint8 [H, W, 3], all of one size of at least `SIDE` pixels.
        sampled: uint8 images of the same size.

    Returns:
        Float32 [3, 3, SIDE, SIDE], for `add_sensor_noise`.
    """
    missing = _flat_spectrum(real) - _flat_spectrum(sampled)
    missing[0, 0] = 0  # the mean brightness of a block is not noise
    powers, axes = np.linalg.eigh(missing)
    root = np.einsum("...ik,...k,...jk->...ij", axes, np.sqrt(powers.clip(0)), axes)
    kernel = np.fft.fftshift(np.fft.ifft2(root, axes=(0, 1)).real, axes=(0, 1))
    return torch.from_numpy(np.moveaxis(kernel, (0, 1), (2, 3)).astype(np.float32).copy())


def add_sensor_noise(images: Sequence[Image], kernel: Tensor, seeds: Sequence[int]) -> list[Image]:
    """Return the images with sensor noise, each from its own seed.

    Args:
        images: uint8 [H, W, 3].
        kernel: see `estimate_sensor_noise`.
        seeds: one per image.
    """
    noisy = []
    for image, seed in zip(images, seeds, strict=True):
        height, width, _ = image.shape
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(1, 3, height + SIDE - 1, width + SIDE - 1, generator=generator)
        noise = F.conv2d(white, kernel)[0].permute(1, 2, 0).numpy()
        noisy.append(np.clip(np.rint(image + noise), 0, 255).astype(np.uint8))
    return noisy


def _flat_spectrum(images: Sequence[Image]) -> NDArray[np.float64]:
    """Return the covariance of the channels by frequency, on flat blocks: [SIDE, SIDE, 3, 3].

    Its mean over the frequencies is the covariance of a pixel. A linear slope is removed from every block, and a Hann
    window is applied.
    """
    ramp = np.linspace(-1, 1, SIDE)
    slope = np.stack([np.ones((SIDE, SIDE)), *np.meshgrid(ramp, ramp)]).reshape(3, -1)
    remove_slope = np.eye(SIDE * SIDE) - np.linalg.pinv(slope) @ slope
    window = np.outer(*[np.hanning(SIDE + 2)[1:-1]] * 2)
    window /= np.sqrt((window**2).mean())
    total, count = np.zeros((SIDE, SIDE, 3, 3)), 0
    for image in images:
        views = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE), axis=(0, 1))[::STRIDE, ::STRIDE]
        blocks = views.reshape(-1, 3, SIDE * SIDE) @ remove_slope
        variance = blocks.var(axis=(1, 2))
        flat = blocks[variance <= np.quantile(variance, FLAT_FRACTION)].reshape(-1, 3, SIDE, SIDE)
        spectra = np.fft.fft2(flat * window)
        total += np.einsum("niyx,njyx->yxij", spectra, spectra.conj()).real
        count += len(flat)
    return total / (count * SIDE**2)
