"""The computed autoencoder is linear and partly whitened, and its error falls with the number of channels."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defect_core.pretraining.corpus import render_scene
from defect_core.pretraining.linear_vae import WHITENING, fit_linear_vae, patchify


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.stack([render_scene(np.random.default_rng([9, index])).image for index in range(60)])


@pytest.fixture(scope="module")
def vae(images: NDArray[np.uint8]) -> Any:
    return fit_linear_vae(images[:50], 12)


def test_latents_are_uncorrelated_and_partly_whitened(vae: Any, images: NDArray[np.uint8]) -> None:
    latents = vae.encode(patchify(images[:50])).latent_dist.mean
    values = latents.permute(0, 2, 3, 1).reshape(-1, 12)
    covariance = torch.cov(values.T)
    assert torch.allclose(covariance, covariance.diag().diag(), atol=0.02)
    assert covariance.diag().mean() == pytest.approx(1, abs=0.02)
    flat = patchify(images[:50]).permute(0, 2, 3, 1).reshape(-1, 192)
    pixels = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)[:12]
    assert torch.allclose(covariance.diag() / covariance[0, 0], (pixels / pixels[0]) ** (2 * WHITENING), atol=0.02)
    assert values.mean(0).abs().max() < 0.02


def test_decoder_is_affine(vae: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 12, 16, 16, generator=generator)
    decoded_mean = vae.decode((first + second) / 2).sample
    mean_of_decoded = (vae.decode(first).sample + vae.decode(second).sample) / 2
    assert torch.allclose(decoded_mean, mean_of_decoded, atol=2e-3)


def test_error_is_below_that_of_pca_and_falls_with_channels(vae: Any, images: NDArray[np.uint8]) -> None:
    errors = [
        _error(candidate, images[50:])
        for candidate in (fit_linear_vae(images[:50], 6), vae, fit_linear_vae(images[:50], 24))
    ]
    assert errors[0] > errors[1] > errors[2]
    flat = patchify(images[:50]).permute(0, 2, 3, 1).reshape(-1, 192)
    unseen = patchify(images[50:]).permute(0, 2, 3, 1).reshape(-1, 192) - flat.mean(0)
    _, _, components = torch.pca_lowrank(flat, 12, niter=8)
    pca_error = (unseen - unseen @ components @ components.T).square().mean()
    assert errors[1] < 0.97 * pca_error


def test_fit_is_reproducible(vae: Any, images: NDArray[np.uint8]) -> None:
    again = fit_linear_vae(images[:50], 12).state_dict()
    for name, weight in vae.state_dict().items():
        assert torch.equal(again[name], weight), name


def _error(vae: Any, images: NDArray[np.uint8]) -> float:
    folded = patchify(images)
    return float((vae.decode(vae.encode(folded).latent_dist.mean).sample - folded).square().mean())
