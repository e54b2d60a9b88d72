"""Normal images that are sampled by an adapted backbone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from striped_plates import make_plates
from torch import Tensor

from defect_core.adaptation import normal_sampler as normals
from defect_core.adaptation.adapt import adapt_denoiser
from defect_core.adaptation.config import AdaptConfig
from defect_core.adaptation.normal_sampler import (
    MAX_REAL_IMAGES,
    NormalSampler,
    SamplerConfig,
    StartImages,
    mean_latents,
    sampling_paths,
    whole_images,
)
from defect_core.backbones.load import Backbone, load_backbone
from defect_core.generators.base import Example
from defect_core.generators.canvas import Window, crop_image
from defect_core.generators.composite import is_gray


@pytest.fixture(scope="module")
def plates() -> list[Example]:
    return make_plates()


def _sampler(backbone: Backbone | None = None, guidance: Backbone | None = None, **config: Any) -> NormalSampler:
    return NormalSampler("plate", backbone or load_backbone("embedded"), guidance, config=SamplerConfig(**config))


def test_sample_depends_on_its_seed_alone() -> None:
    # With few steps, the rounding of bfloat16 alone reaches 2.
    sampler = _sampler(steps=5)
    batch, [single] = sampler.sample([1, 2, 3]), sampler.sample([2])
    differences = [np.abs(image.astype(int) - single).max() for image in batch]
    assert differences[1] <= 1
    assert min(differences[0], differences[2]) > 40
    assert batch[0].shape == (128, 128, 3)
    assert batch[0].dtype == np.uint8


def test_prompt_is_that_of_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, prompts = _sampler(steps=2), []
    encode = sampler.backbone.encode_text
    monkeypatch.setattr(sampler.backbone, "encode_text", lambda texts: prompts.extend(texts) or encode(texts))
    sampler.sample([1])
    assert prompts == ["a photo of a whole plate"]


def test_samples_of_a_gray_product_are_gray() -> None:
    gray_image = np.full((128, 128, 3), 128, np.uint8)
    coloured_image = gray_image + np.array([0, 0, 1], np.uint8)
    gray, coloured = (
        replace(_sampler(steps=2), real_images=[image]).sample([1])[0] for image in (gray_image, coloured_image)
    )
    assert is_gray(gray)
    assert not is_gray(coloured)


def test_guidance_amplifies_what_was_learned(plates: list[Example], tmp_path: Path) -> None:
    config = AdaptConfig(steps=20, batch_size=4, views=16, check_every=20, learning_rate=1e-3)
    backbone, original = load_backbone("embedded"), load_backbone("embedded")
    adapt_denoiser(backbone, plates, config, tmp_path, seed=3)

    def sampled(guidance_scale: float, guidance: Backbone | None) -> np.ndarray:
        sampler = _sampler(backbone, guidance, guidance_scale=guidance_scale, final_level=0.4, steps=3)
        return sampler.sample([1])[0].astype(int)

    plain = sampled(1.0, None)
    assert np.abs(sampled(1.0, original) - plain).max() <= 1
    assert np.abs(sampled(3.0, backbone) - plain).max() <= 1  # without a difference there is nothing to amplify
    assert np.abs(sampled(2.0, original) - plain).mean() > 1


def test_restarts_keep_the_noise_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true noise of a zero image, the latents have the standard deviation of their level at every call."""
    deviations = []

    def predict(backbone: Backbone, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        expected = float((1 - backbone.alphas_cumprod[int(timestep)]) ** 0.5)
        deviations.append((expected, float(latents.std())))
        return latents / expected

    monkeypatch.setattr(normals, "_predict", predict)
    _sampler(final_level=0.4).sample([1, 2])
    assert len(deviations) > 25
    assert all(deviation == pytest.approx(expected, rel=0.03) for expected, deviation in deviations)


def test_guidance_is_off_in_the_first_step_and_the_final_steps() -> None:
    backbone, guidance = load_backbone("embedded"), load_backbone("embedded")
    timesteps: dict[str, list[int]] = {"own": [], "guidance": []}
    for name, network in (("own", backbone.denoiser), ("guidance", guidance.denoiser)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: timesteps[name].append(int(inputs[1])))
    _sampler(backbone, guidance, guidance_scale=2.0, final_level=0.4, steps=20).sample([1])
    restart = [*range(13, 8, -1)]  # from 0.64 of 20 steps
    levels = [*range(20, 8, -1), *restart, *restart, 8, 6, 3]
    assert timesteps["own"] == [round(999 * level / 20) for level in levels]
    assert timesteps["guidance"] == timesteps["own"][1:-3]


def test_guidance_scale_1_does_not_run_the_guidance_backbone() -> None:
    guidance, calls = load_backbone("embedded"), []
    guidance.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    _sampler(None, guidance, steps=3).sample([1])
    assert not calls


@pytest.mark.parametrize(("final_level", "steps"), [(0.4, 15 + 2 * 6 + 3), (0.0, 25)])
def test_noise_scale_multiplies_the_prediction_in_every_step(
    final_level: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = []
    make_ddim_step = normals.make_ddim_step

    def make_recording_step(*arguments: Any) -> Any:
        step = make_ddim_step(*arguments)
        return lambda latents, noise, *levels: predictions.append(noise) or step(latents, noise, *levels)

    monkeypatch.setattr(normals, "_predict", lambda backbone, latents, *_: torch.ones_like(latents))
    monkeypatch.setattr(normals, "make_ddim_step", make_recording_step)
    _sampler(final_level=final_level, noise_scale=1.25).sample([1])
    assert len(predictions) == steps
    assert all(torch.equal(noise, torch.full_like(noise, 1.25)) for noise in predictions)


@pytest.mark.parametrize(("first", "final", "steps"), [(25, 10, 25), (8, 10, 25), (3, 2, 25), (1, 1, 4)])
def test_paths_fall_to_the_clean_level(first: int, final: int, steps: int) -> None:
    paths = sampling_paths(first, min(first, final), steps)
    assert paths[0][0] == first
    assert paths[-1][-1] == 0
    for path in paths:
        assert path == sorted(set(path), reverse=True)


def test_mean_latents_of_the_real_images_set_the_brightness() -> None:
    pale = [np.full((128, 128, 3), 235, np.uint8)] * 2
    plain = _sampler(steps=4)
    assert mean_latents(plain.backbone, pale).shape == (plain.backbone.latent_channels, 1, 1)
    bright = np.mean(replace(plain, real_images=pale).sample([1, 2]))
    assert bright > np.mean(plain.sample([1, 2])) + 5


def test_lower_start_levels_keep_more_of_the_start_images(plates: list[Example]) -> None:
    sampler = _sampler()
    images = [crop_image(example.image, Window(0, 0, 96, 96), sampler.backbone.resolution) for example in plates[:2]]
    changes = []
    for level in (0.04, 0.4, 1.0):
        sampled = sampler.sample_without_sensor_noise([1, 2], StartImages(images, level))
        changes.append(np.abs(np.array(sampled, float) - images).mean())
    assert changes[0] < 0.6 * changes[1]
    assert changes[1] < changes[2]


def test_each_seed_starts_from_its_own_image(plates: list[Example]) -> None:
    sampler = _sampler()
    images = whole_images(plates[:2], 2, sampler.backbone.resolution)
    first, second = sampler.sample_without_sensor_noise([1, 1], StartImages(images, 0.2))
    assert (first != second).any()


def test_whole_images_are_limited_and_evenly_spaced(plates: list[Example]) -> None:
    everything = whole_images(plates, MAX_REAL_IMAGES, 32)
    assert len(everything) == 6
    for image, expected in zip(whole_images(plates, 3, 32), everything[::2], strict=True):
        assert np.array_equal(image, expected)


def test_saved_sampler_loads_with_its_settings_and_sensor_noise(plates: list[Example], tmp_path: Path) -> None:
    backbone = load_backbone("embedded")
    kernel = torch.randn(3, 3, 16, 16)
    config = SamplerConfig(1.6, 0.4, 1.06, 7)
    plain = NormalSampler.from_examples(backbone, None, plates)
    replace(plain, config=config, sensor_noise=kernel).save(tmp_path, [{"distance": 1.0}])
    loaded = NormalSampler.load(tmp_path, backbone, None, plates)
    assert loaded.config == config
    assert loaded.sensor_noise is not None
    assert torch.equal(loaded.sensor_noise, kernel)
    (tmp_path / normals.SENSOR_NOISE_FILE).unlink()
    assert NormalSampler.load(tmp_path, backbone, None, plates).sensor_noise is None
