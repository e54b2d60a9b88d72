"""Adaptation of the backbone to a product's good images."""

import numpy as np
import pytest
import torch
from striped_plates import draw_plates

from defect_core.adaptation.adapt import adapt
from defect_core.backbones import load_backbone
from defect_core.generators.base import Example
from defect_core.generators.views import to_pixels, to_tensor
from defect_core.project.params import Adapt

QUICK = Adapt(steps=4, batch_size=2, views=8, check_every=2, patience=3)


@pytest.fixture(scope="module")
def good():
    return draw_plates()


def _adapted(good, work, settings=QUICK):
    backbone = load_backbone("embedded")
    curve = adapt(backbone, good, settings, work, seed=3)
    return backbone, curve


def test_held_out_loss_falls_and_text_encoder_and_vae_stay(good, tmp_path):
    original = load_backbone("embedded")
    longer = QUICK.model_copy(update={"steps": 30, "check_every": 15, "batch_size": 4, "learning_rate": 1e-3})
    backbone, curve = _adapted(good, tmp_path, longer)
    assert [point["step"] for point in curve] == [0, 15, 30]
    assert curve[-1]["held_out"] < curve[0]["held_out"]
    for part in ("vae", "text_encoder"):
        before, after = getattr(original, part).state_dict(), getattr(backbone, part).state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(good, tmp_path, monkeypatch):
    whole, _ = _adapted(good, tmp_path / "whole")
    from defect_core.training import loop as training

    real = training.train

    def killed(module, loss, **settings):
        def stop(step, generator):
            if step == 3:
                raise KeyboardInterrupt
            return loss(step, generator)

        return real(module, stop, **settings, checkpoint_every=1)

    monkeypatch.setattr("defect_core.adaptation.adapt.train", killed)
    with pytest.raises(KeyboardInterrupt):
        _adapted(good, tmp_path / "broken")
    monkeypatch.setattr("defect_core.adaptation.adapt.train", real)
    broken, _ = _adapted(good, tmp_path / "broken")
    for key, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, broken.denoiser.state_dict()[key]), key


def test_training_stops_after_checks_without_a_new_best_and_the_best_counts(good, tmp_path):
    ruinous = Adapt(steps=40, batch_size=2, views=8, check_every=2, patience=2, learning_rate=0.5)
    backbone, curve = _adapted(good, tmp_path, ruinous)
    assert [point["step"] for point in curve] == [0, 2, 4]
    original = load_backbone("embedded").denoiser.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in backbone.denoiser.state_dict().items())


def test_in_drawing_checks_count_from_half_on_when_the_rate_begins_to_fall(good, tmp_path):
    asked = {"drawing_steps": 14, "drawing_rate": 0.5, "drawing_batch_size": 2, "views": 8}
    asked |= {"check_every": 2, "patience": 2}
    curve = adapt(load_backbone("embedded"), good, Adapt(**asked), tmp_path, seed=0, drawing=True)
    assert [point["step"] for point in curve] == [0, 2, 4, 6, 8, 10]


def test_a_saved_backbone_is_loaded_as_it_was_under_another_digest(good, tmp_path):
    backbone, _ = _adapted(good, tmp_path / "work")
    backbone.save(tmp_path / "saved")
    loaded = load_backbone(tmp_path / "saved")
    for key, value in backbone.denoiser.state_dict().items():
        assert torch.equal(value, loaded.denoiser.state_dict()[key])
    assert loaded.digest != backbone.digest


def test_whole_images_and_local_windows_are_told_apart_by_their_prompts(good, tmp_path, monkeypatch):
    """A network that heard one prompt for both would draw half of each."""
    from defect_core.adaptation import adapt as adaptation

    backbone, heard = load_backbone("embedded"), []
    encode = backbone.encode_text
    monkeypatch.setattr(backbone, "encode_text", lambda prompts: heard.extend(prompts) or encode(prompts))
    said = []
    backbone.denoiser.register_forward_pre_hook(
        lambda network, inputs: said.append((torch.is_grad_enabled(), inputs[2]))
    )
    adapt(backbone, good, QUICK, tmp_path, seed=0)
    assert heard == ["a photo of a plate", "a photo of a whole plate", ""]
    local, whole, _ = encode(heard)
    for learning in (True, False):  # the loss and the held-out loss alike
        states = torch.cat([batch for when, batch in said if when is learning])
        assert all((states == text).all((1, 2)).any() for text in (local, whole))
    banks = adaptation._bank(backbone, good, QUICK.model_copy(update={"local_share": 0.5}), 0, 0)
    assert [len(latents) for latents in banks] == [4, 4]


def test_images_are_learned_as_photographed_and_whole_ones_once():
    """What is turned, shifted or relit before it is learned is drawn so."""
    from defect_core.adaptation import adapt as adaptation

    backbone = load_backbone("embedded")
    ramp = np.add.outer(np.arange(128), 0.5 * np.arange(128))[..., None] * np.ones(3)  # brighter down and to the right
    good = [Example("ramp", "good", (ramp + 10 * n).astype(np.uint8), None, f"{n}.png") for n in range(4)]
    windows, wholes = adaptation._bank(backbone, good, Adapt(views=40, local_share=0.5), 0, 0)
    expected = torch.cat([backbone.encode(to_tensor([example.image])) for example in good])
    assert (torch.cdist(wholes.flatten(1), expected.flatten(1)).min(0).values < 1e-3).all()
    assert (len(windows), len(wholes)) == (20, 4)
    shown = to_pixels(backbone.decode(windows)).mean(-1)
    down, right = (np.diff(shown, axis=axis).mean((1, 2)) for axis in (1, 2))
    assert (down > 0).all() and np.allclose(right / down, 0.5, atol=0.1)


def test_whole_images_are_learned_at_middle_noise_and_windows_at_every_level(good, tmp_path, monkeypatch):
    from defect_core.adaptation import adapt as adaptation

    backbone = load_backbone("embedded")
    levels = backbone.schedule[adaptation.middle_times(backbone.schedule, 4000, torch.Generator().manual_seed(0))]
    ratio = (1 / levels.double() - 1).sqrt().log()
    assert float(ratio.median()) == pytest.approx(0.6, abs=0.05)
    assert float(ratio.quantile(0.16)) == pytest.approx(-0.4, abs=0.1)
    _, whole, _ = backbone.encode_text(["a photo of a plate", "a photo of a whole plate", ""])
    heard = {True: [], False: []}

    def listen(network, inputs):
        if torch.is_grad_enabled():
            for time, text in zip(inputs[1].tolist(), inputs[2], strict=True):
                heard[bool((text == whole).all())].append(time)

    backbone.denoiser.register_forward_pre_hook(listen)
    monkeypatch.setattr(adaptation, "EMPTY_PROMPT_SHARE", 0)
    monkeypatch.setattr(adaptation, "middle_times", lambda schedule, count, generator, **_: torch.full((count,), 777))
    adapt(backbone, good, Adapt(steps=2, batch_size=16, views=8, local_share=0.5), tmp_path, seed=0)
    assert set(heard[True]) == {777} and len(heard[True]) > 8
    windows = np.array(heard[False])
    assert len(windows) > 8 and windows.min() < 250 and windows.max() > 750


def test_stratified_noise_is_of_the_same_kind_and_as_much_of_each_in_every_batch():
    from defect_core.adaptation import adapt as adaptation

    schedule = load_backbone("embedded").schedule
    generator = torch.Generator().manual_seed(0)
    batches = [adaptation.middle_times(schedule, 16, generator, stratified=True) for _ in range(200)]
    ratios = torch.stack([(1 / schedule[times].double() - 1).sqrt().log() for times in batches])
    assert float(ratios.median()) == pytest.approx(0.6, abs=0.05)
    assert float(ratios.quantile(0.16)) == pytest.approx(-0.4, abs=0.1)
    mixed = ratios.flatten()[torch.randperm(ratios.numel(), generator=generator)].reshape(ratios.shape)
    assert float(ratios.mean(1).std()) < 0.3 * float(mixed.mean(1).std())


def test_a_small_share_of_few_views_still_is_one_window(good):
    from defect_core.adaptation import adapt as adaptation

    backbone = load_backbone("embedded")
    shares = {share: Adapt(views=8, local_share=share) for share in (0.0, 0.01)}
    windows = {share: len(adaptation._bank(backbone, good, each, 0, 0)[0]) for share, each in shares.items()}
    assert windows == {0.0: 0, 0.01: 1}


def test_a_check_looks_at_64_views_at_most(good):
    from defect_core.adaptation import adapt as adaptation

    backbone = load_backbone("embedded")
    settings = Adapt(views=3000, validation_fraction=0.1, local_share=0.5)  # a tenth would be 300
    windows, wholes = adaptation._bank(backbone, good, settings, 0, 1)
    assert (len(windows), len(wholes)) == (32, len(good))


def test_one_image_is_too_few(good, tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        adapt(load_backbone("embedded"), good[:1], QUICK, tmp_path, seed=0)


def test_for_drawing_alone_whole_images_are_learned_with_muon_and_nothing_else(good, tmp_path, monkeypatch):
    from defect_core.adaptation import adapt as adaptation
    from defect_core.training import loop as training

    backbone, said, asked = load_backbone("embedded"), [], []
    whole = backbone.encode_text(["a photo of a whole plate"])
    backbone.denoiser.register_forward_pre_hook(lambda network, inputs: said.append(inputs[2]))
    monkeypatch.setattr(adaptation, "train", lambda *a, **k: asked.append(k) or training.train(*a, **k))
    settings = QUICK.model_copy(update={"drawing_steps": 6, "drawing_rate": 1e-3, "drawing_batch_size": 6})
    curve = adapt(backbone, good, settings, tmp_path, seed=0, drawing=True)
    assert all(torch.equal(text, whole.expand_as(text)) for text in said)
    assert {len(text) for text in said} == {6, 1}  # a batch; what is held out, in checks
    assert [point["step"] for point in curve] == [0, 2, 4, 6]
    assert [(each["learning_rate"], each["muon"]) for each in asked] == [(1e-3, True)]
    before = load_backbone("embedded").denoiser.state_dict()
    kept = {name for name, value in backbone.denoiser.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if name.startswith(("conv_in.", "down_blocks."))} <= kept
    assert not any(name.endswith("conv1.weight") for name in kept if name.startswith(("mid_block.", "up_blocks.")))
