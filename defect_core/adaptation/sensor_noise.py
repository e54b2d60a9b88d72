"""The grain of a camera, which a denoiser takes off with the noise: measured where images are flat, and put back.

As film grain is in video (Norkin and Birkbeck 2018, "Film grain synthesis for AV1 video codec"): what flat blocks of
the photographs have more than those of the decoded pictures is drawn anew as Gaussian noise. Here with its spectrum,
and the spectra between channels, instead of an autoregression, and the same at every brightness.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from defect_core.generators.base import Image

SIDE, STRIDE = 16, 8
FLAT_SHARE = 0.5  # of the blocks of an image: those that deviate least


def estimate_sensor_noise(real: Sequence[Image], drawn: Sequence[Image]) -> Tensor:
    """Kernel float32 [3, 3, SIDE, SIDE] that makes of white noise the grain which real images have and drawn ones lack.

    Args:
        real, drawn: uint8 [H, W, 3] each, all of one size, at least `SIDE` pixels a side.
    """
    lacking = _flat_spectrum(real) - _flat_spectrum(drawn)
    lacking[0, 0] = 0  # brightness is no grain
    powers, axes = np.linalg.eigh(lacking)
    root = np.einsum("...ik,...k,...jk->...ij", axes, np.sqrt(powers.clip(0)), axes)
    kernel = np.fft.fftshift(np.fft.ifft2(root, axes=(0, 1)).real, axes=(0, 1))
    return torch.from_numpy(np.moveaxis(kernel, (0, 1), (2, 3)).astype(np.float32).copy())


def add_sensor_noise(images: Sequence[Image], kernel: Tensor, seeds: Sequence[int]) -> list[Image]:
    """The images uint8 [H, W, 3] under grain, each from its own seed.

    Args:
        kernel: see `estimate_sensor_noise`.
    """
    grained = []
    for image, seed in zip(images, seeds, strict=True):
        height, width, _ = image.shape
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, 3, height + SIDE - 1, width + SIDE - 1, generator=generator)
        grain = F.conv2d(noise, kernel)[0].permute(1, 2, 0).numpy()
        grained.append(np.clip(np.rint(image + grain), 0, 255).astype(np.uint8))
    return grained


def _flat_spectrum(images: Sequence[Image]) -> NDArray[np.float64]:
    """Variance by frequency, of and between the channels, [SIDE, SIDE, 3, 3]; its mean over the frequencies is the
    covariance of a pixel. Blocks are freed of their slope and weighted by Hann's window.
    """
    ramp = np.linspace(-1, 1, SIDE)
    slope = np.stack([np.ones((SIDE, SIDE)), *np.meshgrid(ramp, ramp)]).reshape(3, -1)
    level = np.eye(SIDE * SIDE) - np.linalg.pinv(slope) @ slope
    window = np.outer(*[np.hanning(SIDE + 2)[1:-1]] * 2)
    window /= np.sqrt((window**2).mean())
    total, count = np.zeros((SIDE, SIDE, 3, 3)), 0
    for image in images:
        views = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE), axis=(0, 1))[::STRIDE, ::STRIDE]
        blocks = views.reshape(-1, 3, SIDE * SIDE) @ level
        deviation = blocks.var(axis=(1, 2))
        flat = blocks[deviation <= np.quantile(deviation, FLAT_SHARE)].reshape(-1, 3, SIDE, SIDE)
        waves = np.fft.fft2(flat * window)
        total += np.einsum("niyx,njyx->yxij", waves, waves.conj()).real
        count += len(flat)
    return total / (count * SIDE**2)
