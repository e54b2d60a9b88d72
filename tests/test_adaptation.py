"""Adaptation of the backbone to a product's good images."""

import json

import numpy as np
import pytest
import torch

from defect_core.adaptation import Way, adapt, draw_normals, mean_latents
from defect_core.backbones import load_backbone
from defect_core.data.records import Record, load_image, save_png, write_records
from defect_core.generators.base import Example
from defect_core.generators.canvas import Window, show_image
from defect_core.generators.composite import is_gray
from defect_core.generators.views import to_pixels, to_tensor
from defect_core.params import Adapt
from defect_core.project import Project

QUICK = Adapt(steps=4, batch_size=2, views=8, check_every=2, patience=3)


@pytest.fixture(scope="module")
def good():
    rng = np.random.default_rng(0)
    shade = 128 + 100 * np.sin(np.arange(96) / 5)[:, None, None] * np.array([1, -1, 0.5])
    plates = np.clip(shade + rng.normal(0, 5, (6, 96, 96, 3)), 0, 255).astype(np.uint8)
    return [Example("plate", "good", plate, None, f"{index}.png") for index, plate in enumerate(plates)]


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
    from defect_core import training

    real = training.train

    def killed(module, loss, **settings):
        def stop(step, generator):
            if step == 3:
                raise KeyboardInterrupt
            return loss(step, generator)

        return real(module, stop, **settings, checkpoint_every=1)

    monkeypatch.setattr("defect_core.adaptation.train", killed)
    with pytest.raises(KeyboardInterrupt):
        _adapted(good, tmp_path / "broken")
    monkeypatch.setattr("defect_core.adaptation.train", real)
    broken, _ = _adapted(good, tmp_path / "broken")
    for key, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, broken.denoiser.state_dict()[key]), key


def test_training_stops_after_checks_without_a_new_best_and_the_best_counts(good, tmp_path):
    ruinous = Adapt(steps=40, batch_size=2, views=8, check_every=2, patience=2, learning_rate=0.5)
    backbone, curve = _adapted(good, tmp_path, ruinous)
    assert [point["step"] for point in curve] == [0, 2, 4]
    original = load_backbone("embedded").denoiser.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in backbone.denoiser.state_dict().items())


def test_a_saved_backbone_is_loaded_as_it_was_under_another_digest(good, tmp_path):
    backbone, _ = _adapted(good, tmp_path / "work")
    backbone.save(tmp_path / "saved")
    loaded = load_backbone(tmp_path / "saved")
    for key, value in backbone.denoiser.state_dict().items():
        assert torch.equal(value, loaded.denoiser.state_dict()[key])
    assert loaded.digest != backbone.digest


def test_drawn_images_depend_on_their_seed_alone(good):
    backbone = load_backbone("embedded")
    # in two steps, each half of the schedule long, bfloat16's rounding alone comes to 2
    together = draw_normals(backbone, "plate", [1, 2, 3], steps=5, batch_size=3)
    alone = draw_normals(backbone, "plate", [2], steps=5)
    off = [np.abs(image.astype(int) - alone[0]).max() for image in together]
    assert off[1] <= 1
    assert min(off[0], off[2]) > 40
    assert together[0].shape == (128, 128, 3)


def test_a_gray_product_is_drawn_in_gray(good):
    backbone = load_backbone("embedded")
    [tinted] = draw_normals(backbone, "plate", [1], steps=2)
    [gray] = draw_normals(backbone, "plate", [1], steps=2, gray=True)
    assert not is_gray(tinted) and is_gray(gray)
    assert np.abs(gray.astype(float) - tinted.mean(-1, keepdims=True)).max() <= 1.5


def test_whole_images_and_local_windows_are_told_apart_by_their_prompts(good, tmp_path, monkeypatch):
    """A network that heard one prompt for both would draw half of each."""
    from defect_core import adaptation

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
    heard.clear()
    draw_normals(backbone, "plate", [1], steps=2)
    assert heard == ["a photo of a whole plate"]


def test_images_are_learned_as_photographed_and_whole_ones_once():
    """What is turned, shifted or relit before it is learned is drawn so."""
    from defect_core import adaptation

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
    from defect_core import adaptation

    backbone = load_backbone("embedded")
    levels = backbone.schedule[adaptation.middle_times(backbone.schedule, 4000, torch.Generator().manual_seed(0))]
    ratio = (1 / levels.double() - 1).sqrt().log()
    assert float(ratio.median()) == pytest.approx(0.8, abs=0.05)
    assert float(ratio.quantile(0.16)) == pytest.approx(-0.1, abs=0.1)
    _, whole, _ = backbone.encode_text(["a photo of a plate", "a photo of a whole plate", ""])
    heard = {True: [], False: []}

    def listen(network, inputs):
        if torch.is_grad_enabled():
            for time, text in zip(inputs[1].tolist(), inputs[2], strict=True):
                heard[bool((text == whole).all())].append(time)

    backbone.denoiser.register_forward_pre_hook(listen)
    monkeypatch.setattr(adaptation, "EMPTY_PROMPT_SHARE", 0)
    monkeypatch.setattr(adaptation, "middle_times", lambda schedule, count, generator: torch.full((count,), 777))
    adapt(backbone, good, Adapt(steps=2, batch_size=16, views=8, local_share=0.5), tmp_path, seed=0)
    assert set(heard[True]) == {777} and len(heard[True]) > 8
    windows = np.array(heard[False])
    assert len(windows) > 8 and windows.min() < 250 and windows.max() > 750


def test_a_small_share_of_few_views_still_is_one_window(good):
    from defect_core import adaptation

    backbone = load_backbone("embedded")
    shares = {share: Adapt(views=8, local_share=share) for share in (0.0, 0.01)}
    windows = {share: len(adaptation._bank(backbone, good, each, 0, 0)[0]) for share, each in shares.items()}
    assert windows == {0.0: 0, 0.01: 1}


def test_guidance_amplifies_what_was_learned_and_none_remains_without_a_difference(good, tmp_path):
    settings = Adapt(steps=20, batch_size=4, views=16, check_every=20, learning_rate=1e-3)
    backbone, original = _adapted(good, tmp_path, settings)[0], load_backbone("embedded")

    def drawn(scale, guide):
        images = draw_normals(backbone, "plate", [1], steps=3, guide=guide, way=Way(scale, 0.4))
        return images[0].astype(int)

    plain = drawn(1.0, None)
    assert np.abs(drawn(1.0, original) - plain).max() <= 1  # at 1 the guide falls out
    assert np.abs(drawn(3.0, backbone) - plain).max() <= 1  # nothing learned, nothing to amplify
    assert np.abs(drawn(2.0, original) - plain).mean() > 1


def test_guidance_leaves_the_first_step_and_the_last_moves_alone():
    backbone, guide = load_backbone("embedded"), load_backbone("embedded")
    heard = {"own": [], "guide": []}
    for name, network in (("own", backbone.denoiser), ("guide", guide.denoiser)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: heard[name].append(int(inputs[1])))
    draw_normals(backbone, "plate", [1], steps=20, guide=guide, way=Way(2.0, 0.4))
    path = [*range(20, 7, -1), 4]  # from step 8 of 20 by way of step 4 to the clean end
    assert heard["own"] == [round(999 * step / 20) for step in path]
    assert heard["guide"] == heard["own"][1:-2]  # steps 19 to 9
    heard["own"].clear()
    heard["guide"].clear()
    draw_normals(backbone, "plate", [1], steps=20, guide=guide, way=Way(1.0, 0.0))
    assert len(heard["own"]) == 20 and not heard["guide"]  # nothing to guide


def test_the_mean_of_the_good_images_sets_the_brightness_that_noise_alone_does_not(good):
    backbone = load_backbone("embedded")
    pale = [Example("plate", "good", np.full((96, 96, 3), 235, np.uint8), None, "0.png")] * 2
    mean = mean_latents(backbone, pale)
    assert mean.shape == (backbone.latent_channels, 1, 1)
    grey, light = (np.mean(draw_normals(backbone, "plate", [1, 2], steps=4, mean=m)) for m in (None, mean))
    assert light > grey + 5


def test_one_image_is_too_few(good, tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        adapt(load_backbone("embedded"), good[:1], QUICK, tmp_path, seed=0)


def test_images_begun_from_references_keep_more_of_them_the_lower_the_level(good):
    backbone = load_backbone("embedded")
    references = [show_image(example.image, Window(0, 0, 96, 96), backbone.resolution) for example in good[:2]]
    change = []
    for level in (0.04, 0.4, 1.0):
        images = draw_normals(backbone, "plate", [1, 2], references=references, level=level, batch_size=1)
        change.append(np.abs(np.array(images, float) - references).mean())
    assert change[0] < 0.6 * change[1] and change[1] < change[2]
    first, second = draw_normals(backbone, "plate", [1, 1], references=references, level=0.2)
    assert (first != second).any()  # each begins from its own


def test_the_stage_leaves_a_backbone_its_curve_and_images_to_look_at(good, tmp_path, monkeypatch):
    from defect_core.steps import adapt as step
    from defect_core.steps.adapt import DISTANCES, DRAWN, GRAIN, WAYS, chosen_way, run, with_grain

    monkeypatch.setattr(step, "TRIED", 2)
    (tmp_path / "params.yaml").write_text(
        "products: [plate]\nsources: {plate: {path: x, layout: mvtec}}\ngenerators: [crop-paste]\n"
        "arms: [real_only, crop-paste]\nadapt: {steps: 2, batch_size: 2, views: 4, check_every: 2}\n"
    )
    raw, records = tmp_path / "data/raw/plate", []
    for example in good:
        save_png(example.image, raw / example.name)
        records.append(Record("plate", "good", example.name, None, "train", example.name, 96, 96))
    (tmp_path / "data/split").mkdir()
    write_records(records, tmp_path / "data/split/plate.parquet")
    run(Project(tmp_path), "plate")
    folder = tmp_path / "data/backbone/plate"
    images = [load_image(path) for path in sorted(folder.glob("drawn/*.png"))]
    assert len(images) == DRAWN and len({image.tobytes() for image in images}) == DRAWN
    assert load_backbone(folder).resolution == images[0].shape[0]
    assert [point["step"] for point in json.loads((folder / "adaptation.json").read_text())] == [0, 2]
    described = json.loads((folder / "drawing.json").read_text())
    tried = {Way(row["guidance_scale"], row["finish"]): [row[each] for each in DISTANCES] for row in described["tried"]}
    assert tuple(tried) == WAYS
    clear, grained = tried[chosen_way(folder)]
    assert min(clear, grained) == min(min(both) for both in tried.values())
    assert len({clear for clear, _ in tried.values()}) == len(WAYS)  # each is drawn in its own way
    # the plates have noise, which four steps of learning do not draw
    assert grained < clear and (folder / GRAIN).is_file()
    [regrained] = with_grain(images[:1], [5], folder)
    assert 2 < np.std(regrained.astype(float) - images[0]) < 8
    (folder / GRAIN).unlink()
    assert with_grain(images, [], folder) is images  # none was chosen
