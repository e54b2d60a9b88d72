"""The grain of a camera: what is measured is what was put there, and edges are none of it."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.adaptation.sensor_noise import add_sensor_noise, estimate_sensor_noise

COUNT, SIDE = 8, 96


def _scenes(rng, deviation, blur=0.0, gray=False):
    """Uint8 images of a plain ground with a sharp bar across, which covers a third, under correlated noise."""
    clean = np.full((COUNT, SIDE, SIDE, 3), 150.0)
    clean[:, 30:62] = 60 + 90 * (np.arange(SIDE)[:, None] // 3 % 2)
    noise = rng.normal(0, 1, clean.shape)
    if gray:
        noise[:] = noise[..., :1]
    if blur:
        noise = ndimage.gaussian_filter(noise, (0, blur, blur, 0))
    return np.clip(np.rint(clean + deviation * noise / noise.std()), 0, 255).astype(np.uint8)


def _grain(kernel, side=256, seed=0):
    """What is added to a gray image."""
    ground = np.full((side, side, 3), 128, np.uint8)
    [grained] = add_sensor_noise([ground], kernel, [seed])
    return grained.astype(float) - 128


def _neighbours(grain):
    """Correlation of a pixel with the next."""
    return float((grain[..., 1:, :] * grain[..., :-1, :]).mean() / grain.var())


@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_grain_has_the_deviation_and_the_correlation_of_what_is_missing(blur):
    rng = np.random.default_rng(0)
    kernel = estimate_sensor_noise(_scenes(rng, 3.0, blur), _scenes(rng, 1.0, blur))
    grain = _grain(kernel)
    assert grain.shape == (256, 256, 3)
    assert grain.std() == pytest.approx(np.sqrt(3.0**2 - 1.0**2), rel=0.06)
    assert _neighbours(grain) == pytest.approx(np.exp(-1 / (4 * blur**2)) if blur else 0, abs=0.06)
    between = np.corrcoef(grain.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 0.05


def test_grain_of_gray_images_is_gray():
    rng = np.random.default_rng(1)
    grain = _grain(estimate_sensor_noise(_scenes(rng, 2.0, gray=True), _scenes(rng, 0)))
    assert grain.std() == pytest.approx(2, rel=0.1)
    assert np.abs(grain - grain[..., :1]).max() == 0


def test_where_nothing_is_missing_next_to_nothing_is_drawn():
    rng = np.random.default_rng(2)
    kernel = estimate_sensor_noise(_scenes(rng, 1.0), _scenes(rng, 3.0))
    assert _grain(kernel).std() < 0.1


def test_an_images_grain_is_its_seeds_alone():
    rng = np.random.default_rng(3)
    kernel = estimate_sensor_noise(_scenes(rng, 3.0), _scenes(rng, 1.0))
    images = list(_scenes(rng, 0))[:3]
    first, second, third = add_sensor_noise(images, kernel, [1, 2, 1])
    assert (first == add_sensor_noise(images[:1], kernel, [1])[0]).all()
    assert (first == third).all() and (first != second).any()
    assert (images[0] == _scenes(rng, 0)[0]).all()  # what was given is left alone
