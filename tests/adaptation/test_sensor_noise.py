"""Sensor noise: the estimate equals the added noise, and edges do not count as noise."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.adaptation.sensor_noise import add_sensor_noise, estimate_sensor_noise

COUNT, SIDE = 8, 96


def _scenes(rng, deviation, blur=0.0, gray=False):
    """Return uint8 images of a plain ground and a sharp striped bar on a third of it, with correlated noise."""
    clean = np.full((COUNT, SIDE, SIDE, 3), 150.0)
    clean[:, 30:62] = 60 + 90 * (np.arange(SIDE)[:, None] // 3 % 2)
    noise = rng.normal(0, 1, clean.shape)
    if gray:
        noise[:] = noise[..., :1]
    if blur:
        noise = ndimage.gaussian_filter(noise, (0, blur, blur, 0))
    return np.clip(np.rint(clean + deviation * noise / noise.std()), 0, 255).astype(np.uint8)


def _sensor_noise(kernel, side=256, seed=0):
    """Return the noise that is added to a gray image."""
    ground = np.full((side, side, 3), 128, np.uint8)
    [noisy] = add_sensor_noise([ground], kernel, [seed])
    return noisy.astype(float) - 128


def _neighbour_correlation(noise):
    """Return the correlation of neighbouring pixels."""
    return float((noise[..., 1:, :] * noise[..., :-1, :]).mean() / noise.var())


@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_estimate_has_deviation_and_correlation_of_the_missing_noise(blur):
    rng = np.random.default_rng(0)
    kernel = estimate_sensor_noise(_scenes(rng, 3.0, blur), _scenes(rng, 1.0, blur))
    noise = _sensor_noise(kernel)
    assert noise.shape == (256, 256, 3)
    assert noise.std() == pytest.approx(np.sqrt(3.0**2 - 1.0**2), rel=0.06)
    assert _neighbour_correlation(noise) == pytest.approx(np.exp(-1 / (4 * blur**2)) if blur else 0, abs=0.06)
    between = np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 0.05


def test_noise_of_gray_images_is_gray():
    rng = np.random.default_rng(1)
    noise = _sensor_noise(estimate_sensor_noise(_scenes(rng, 2.0, gray=True), _scenes(rng, 0)))
    assert noise.std() == pytest.approx(2, rel=0.1)
    assert np.abs(noise - noise[..., :1]).max() == 0


def test_without_missing_noise_almost_nothing_is_added():
    rng = np.random.default_rng(2)
    kernel = estimate_sensor_noise(_scenes(rng, 1.0), _scenes(rng, 3.0))
    assert _sensor_noise(kernel).std() < 0.1


def test_noise_of_an_image_depends_on_its_seed_alone():
    rng = np.random.default_rng(3)
    kernel = estimate_sensor_noise(_scenes(rng, 3.0), _scenes(rng, 1.0))
    images = list(_scenes(rng, 0))[:3]
    first, second, third = add_sensor_noise(images, kernel, [1, 2, 1])
    assert (first == add_sensor_noise(images[:1], kernel, [1])[0]).all()
    assert (first == third).all() and (first != second).any()
    assert (images[0] == _scenes(rng, 0)[0]).all()  # the input stays unchanged
