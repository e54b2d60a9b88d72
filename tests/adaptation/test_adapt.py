"""Adaptation of the backbone to the normal images of a product."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from striped_plates import make_plates
from torch import Tensor

from defect_core.adaptation import adapt as adaptation
from defect_core.adaptation.adapt import adapt_denoiser, sample_middle_timesteps, train_normal_denoiser
from defect_core.adaptation.config import AdaptConfig
from defect_core.backbones.compute import ComputeConfig
from defect_core.backbones.load import Backbone, load_backbone
from defect_core.generators.base import Example
from defect_core.generators.views import to_pixels, to_tensor
from defect_core.training.loop import train

QUICK = AdaptConfig(steps=4, batch_size=2, views=8, check_every=2, patience=3)
PROMPTS = ["a photo of a plate", "a photo of a whole plate", ""]


@pytest.fixture(scope="module")
def plates() -> list[Example]:
    return make_plates()


def _adapted(
    plates: list[Example], work_dir: Path, config: AdaptConfig = QUICK
) -> tuple[Backbone, list[dict[str, Any]]]:
    backbone = load_backbone("embedded")
    return backbone, adapt_denoiser(backbone, plates, config, work_dir, seed=3)


def _record_texts(backbone: Backbone) -> list[tuple[bool, Tensor]]:
    """Return a list that receives, for each call of the denoiser, whether it trains, and its texts."""
    calls = []
    backbone.denoiser.register_forward_pre_hook(
        lambda network, inputs: calls.append((torch.is_grad_enabled(), inputs[2]))
    )
    return calls


def test_held_out_loss_falls_and_only_the_denoiser_changes(plates: list[Example], tmp_path: Path) -> None:
    original = load_backbone("embedded")
    longer = QUICK.model_copy(update={"steps": 30, "check_every": 15, "batch_size": 4, "learning_rate": 1e-3})
    backbone, curve = _adapted(plates, tmp_path, longer)
    assert [point["step"] for point in curve] == [0, 15, 30]
    assert curve[-1]["held_out"] < curve[0]["held_out"]
    for part in ("vae", "text_encoder"):
        before, after = getattr(original, part).state_dict(), getattr(backbone, part).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_run(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, _ = _adapted(plates, tmp_path / "uninterrupted")

    def killed_train(module: Any, loss: Any, config: Any, **options: Any) -> list[float]:
        def killed_loss(step: int, generator: torch.Generator) -> Tensor:
            if step == 3:
                raise KeyboardInterrupt
            return loss(step, generator)

        return train(module, killed_loss, config, **{**options, "compute": ComputeConfig(checkpoint_every=1)})

    monkeypatch.setattr(adaptation, "train", killed_train)
    with pytest.raises(KeyboardInterrupt):
        _adapted(plates, tmp_path / "killed")
    monkeypatch.setattr(adaptation, "train", train)
    resumed, _ = _adapted(plates, tmp_path / "killed")
    for key, value in uninterrupted.denoiser.state_dict().items():
        assert torch.equal(value, resumed.denoiser.state_dict()[key]), key


def test_training_stops_early_and_returns_the_best_weights(plates: list[Example], tmp_path: Path) -> None:
    diverging = AdaptConfig(steps=40, batch_size=2, views=8, check_every=2, patience=2, learning_rate=0.5)
    backbone, curve = _adapted(plates, tmp_path, diverging)
    assert [point["step"] for point in curve] == [0, 2, 4]
    original = load_backbone("embedded").denoiser.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in backbone.denoiser.state_dict().items())


def test_patience_of_the_normal_denoiser_starts_at_half_of_the_steps(plates: list[Example], tmp_path: Path) -> None:
    diverging = AdaptConfig(
        normal_sampler_steps=14,
        normal_sampler_learning_rate=0.5,
        normal_sampler_batch_size=2,
        views=8,
        check_every=2,
        patience=2,
    )
    curve = train_normal_denoiser(load_backbone("embedded"), plates, diverging, tmp_path, seed=0)
    assert [point["step"] for point in curve] == [0, 2, 4, 6, 8, 10]


def test_saved_backbone_loads_with_equal_weights_and_another_digest(plates: list[Example], tmp_path: Path) -> None:
    backbone, _ = _adapted(plates, tmp_path / "work")
    backbone.save(tmp_path / "saved")
    loaded = load_backbone(tmp_path / "saved")
    for key, value in backbone.denoiser.state_dict().items():
        assert torch.equal(value, loaded.denoiser.state_dict()[key])
    assert loaded.digest != backbone.digest


def test_whole_images_and_local_windows_have_different_prompts(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, prompts = load_backbone("embedded"), []
    encode = backbone.encode_text
    monkeypatch.setattr(backbone, "encode_text", lambda texts: prompts.extend(texts) or encode(texts))
    calls = _record_texts(backbone)
    adapt_denoiser(backbone, plates, QUICK, tmp_path, seed=0)
    assert prompts == PROMPTS
    local, whole, _ = encode(prompts)
    for is_training in (True, False):
        states = torch.cat([texts for training, texts in calls if training is is_training])
        assert all((states == text).all((1, 2)).any() for text in (local, whole))


def test_images_are_not_augmented_and_whole_images_occur_once() -> None:
    backbone = load_backbone("embedded")
    ramp = np.add.outer(np.arange(128), 0.5 * np.arange(128))[..., None] * np.ones(3)  # brighter down and to the right
    ramps = [Example("ramp", "good", (ramp + 10 * n).astype(np.uint8), None, f"{n}.png") for n in range(4)]
    windows, wholes = adaptation._encode_latents(backbone, ramps, 40, 0.5, np.random.default_rng(1))
    expected = torch.cat([backbone.encode(to_tensor([example.image])) for example in ramps])
    assert (torch.cdist(wholes.flatten(1), expected.flatten(1)).min(0).values < 1e-3).all()
    assert (len(windows), len(wholes)) == (20, 4)
    decoded = to_pixels(backbone.decode(windows)).mean(-1)
    down, right = (np.diff(decoded, axis=axis).mean((1, 2)) for axis in (1, 2))
    assert (down > 0).all()
    assert np.allclose(right / down, 0.5, atol=0.1)


@pytest.mark.parametrize(("fraction", "windows"), [(0.0, 0), (0.01, 1), (0.5, 4)])
def test_any_positive_fraction_gives_at_least_one_window(fraction: float, windows: int, plates: list[Example]) -> None:
    local, _ = adaptation._encode_latents(load_backbone("embedded"), plates, 8, fraction, np.random.default_rng(0))
    assert len(local) == windows


def test_validation_has_at_most_64_views(plates: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    monkeypatch.setattr(adaptation, "_encode_latents", lambda *arguments: counts.append(arguments[2]))
    config = AdaptConfig(views=3000, validation_fraction=0.1)
    settings = adaptation._Settings(1, 1, 1e-3, 0.5, 0.1)
    adaptation._Objective(load_backbone("embedded"), plates, config, settings, 0)
    assert counts == [3000, 64]


def test_windows_have_all_timesteps_and_whole_images_the_middle_ones(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("embedded")
    _, whole, _ = backbone.encode_text(PROMPTS)
    timesteps: dict[bool, list[int]] = {True: [], False: []}

    def record(network: Any, inputs: Any) -> None:
        if torch.is_grad_enabled():
            for timestep, text in zip(inputs[1].tolist(), inputs[2], strict=True):
                timesteps[bool((text == whole).all())].append(timestep)

    backbone.denoiser.register_forward_pre_hook(record)
    monkeypatch.setattr(adaptation, "EMPTY_PROMPT_FRACTION", 0)
    monkeypatch.setattr(
        adaptation, "sample_middle_timesteps", lambda bars, count, generator, **_: torch.full((count,), 777)
    )
    adapt_denoiser(backbone, plates, AdaptConfig(steps=2, batch_size=16, views=8, local_fraction=0.5), tmp_path, seed=0)
    assert set(timesteps[True]) == {777}
    windows = np.array(timesteps[False])
    assert len(windows) > 8
    assert windows.min() < 250
    assert windows.max() > 750


@pytest.mark.parametrize("is_stratified", [False, True])
def test_middle_timesteps_have_a_log_normal_noise_ratio(is_stratified: bool) -> None:
    bars = load_backbone("embedded").alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    timesteps = sample_middle_timesteps(bars, 4000, generator, is_stratified=is_stratified)
    ratios = (1 / bars[timesteps].double() - 1).sqrt().log()
    assert float(ratios.median()) == pytest.approx(0.6, abs=0.05)
    assert float(ratios.quantile(0.16)) == pytest.approx(-0.4, abs=0.1)


def test_stratified_batches_have_similar_noise_ratios() -> None:
    bars = load_backbone("embedded").alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    batches = [sample_middle_timesteps(bars, 16, generator, is_stratified=True) for _ in range(200)]
    ratios = torch.stack([(1 / bars[timesteps].double() - 1).sqrt().log() for timesteps in batches])
    mixed = ratios.flatten()[torch.randperm(ratios.numel(), generator=generator)].reshape(ratios.shape)
    assert float(ratios.mean(1).std()) < 0.3 * float(mixed.mean(1).std())


def test_one_image_is_too_few(plates: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two normal images, got 1"):
        adapt_denoiser(load_backbone("embedded"), plates[:1], QUICK, tmp_path, seed=0)


def test_normal_denoiser_learns_whole_images_with_muon_and_a_frozen_encoder(
    plates: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, configs = load_backbone("embedded"), []
    whole = backbone.encode_text([PROMPTS[1]])
    calls = _record_texts(backbone)
    monkeypatch.setattr(adaptation, "train", lambda *a, **k: configs.append(a[2]) or train(*a, **k))
    changes = {"normal_sampler_steps": 6, "normal_sampler_learning_rate": 1e-3, "normal_sampler_batch_size": 6}
    curve = train_normal_denoiser(backbone, plates, QUICK.model_copy(update=changes), tmp_path, seed=0)
    assert [point["step"] for point in curve] == [0, 2, 4, 6]
    assert all(torch.equal(texts, whole.expand_as(texts)) for _, texts in calls)
    assert {len(texts) for is_training, texts in calls if is_training} == {6}
    assert [(config.learning_rate, config.use_muon) for config in configs] == [(1e-3, True)]
    before = load_backbone("embedded").denoiser.state_dict()
    unchanged = {name for name, value in backbone.denoiser.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if name.startswith(("conv_in.", "down_blocks."))} <= unchanged
    decoder = {name for name in before if name.startswith(("mid_block.", "up_blocks."))}
    assert not any(name.endswith("conv1.weight") for name in decoder & unchanged)
