"""Good images drawn by an adapted backbone, and the stage that finds out how."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from striped_plates import draw_plates

from defect_core.adaptation.adapt import adapt
from defect_core.adaptation.normal_sampler import (
    GRAIN,
    WEIGHTS,
    NormalSampler,
    SamplerConfig,
    mean_latents,
    sample_normal_images,
)
from defect_core.backbones import load_backbone
from defect_core.data.records import Record, load_image, save_png, write_records
from defect_core.generators.canvas import Window, crop_image
from defect_core.generators.composite import is_gray
from defect_core.project.params import Adapt
from defect_core.project.paths import Project
from defect_core.stages import adapt as step
from defect_core.stages.adapt import DISTANCES, DRAWN, WAYS


@pytest.fixture(scope="module")
def good():
    return draw_plates()


def test_drawn_images_depend_on_their_seed_alone(good):
    backbone = load_backbone("embedded")
    # in two steps, each half of the schedule long, bfloat16's rounding alone comes to 2
    together = sample_normal_images(backbone, "plate", [1, 2, 3], steps=5, batch_size=3)
    alone = sample_normal_images(backbone, "plate", [2], steps=5)
    off = [np.abs(image.astype(int) - alone[0]).max() for image in together]
    assert off[1] <= 1
    assert min(off[0], off[2]) > 40
    assert together[0].shape == (128, 128, 3)


def test_good_images_are_asked_for_as_wholes(monkeypatch):
    backbone, heard = load_backbone("embedded"), []
    encode = backbone.encode_text
    monkeypatch.setattr(backbone, "encode_text", lambda prompts: heard.extend(prompts) or encode(prompts))
    sample_normal_images(backbone, "plate", [1], steps=2)
    assert heard == ["a photo of a whole plate"]


def test_a_gray_product_is_drawn_in_gray(good):
    backbone = load_backbone("embedded")
    [tinted] = sample_normal_images(backbone, "plate", [1], steps=2)
    [gray] = sample_normal_images(backbone, "plate", [1], steps=2, gray=True)
    assert not is_gray(tinted) and is_gray(gray)
    assert np.abs(gray.astype(float) - tinted.mean(-1, keepdims=True)).max() <= 1.5


def test_guidance_amplifies_what_was_learned_and_none_remains_without_a_difference(good, tmp_path):
    settings = Adapt(steps=20, batch_size=4, views=16, check_every=20, learning_rate=1e-3)
    backbone, original = load_backbone("embedded"), load_backbone("embedded")
    adapt(backbone, good, settings, tmp_path, seed=3)

    def drawn(scale, guide):
        images = sample_normal_images(backbone, "plate", [1], steps=3, guide=guide, way=SamplerConfig(scale, 0.4))
        return images[0].astype(int)

    plain = drawn(1.0, None)
    assert np.abs(drawn(1.0, original) - plain).max() <= 1  # at 1 the guide falls out
    assert np.abs(drawn(3.0, backbone) - plain).max() <= 1  # nothing learned, nothing to amplify
    assert np.abs(drawn(2.0, original) - plain).mean() > 1


def test_a_restart_is_noised_as_the_schedule_says(monkeypatch):
    """Before each call of the network the latents must hold as much noise as their level: pure noise stays pure."""
    backbone, seen = load_backbone("embedded"), []

    def predict(network, latents, time, text):
        wanted = float((1 - network.schedule[int(time)]) ** 0.5)
        seen.append((wanted, float(latents.std())))
        return latents / wanted  # what a perfect network says where the clean image is zero everywhere

    monkeypatch.setattr("defect_core.adaptation.normal_sampler._predict", predict)
    sample_normal_images(backbone, "plate", [1, 2], way=SamplerConfig(1.0, 0.4))
    assert len(seen) > 25
    assert all(deviation == pytest.approx(wanted, rel=0.03) for wanted, deviation in seen)


def test_guidance_leaves_the_first_step_and_the_last_moves_alone():
    backbone, guide = load_backbone("embedded"), load_backbone("embedded")
    heard = {"own": [], "guide": []}
    for name, network in (("own", backbone.denoiser), ("guide", guide.denoiser)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: heard[name].append(int(inputs[1])))
    sample_normal_images(backbone, "plate", [1], steps=20, guide=guide, way=SamplerConfig(2.0, 0.4))
    again = [*range(13, 8, -1)]  # from 0.64 of 20 steps down once more
    path = [*range(20, 8, -1), *again, *again, 8, 6, 3]  # from step 8 of 20 by way of 6 and 3 to the clean end
    assert heard["own"] == [round(999 * step / 20) for step in path]
    assert heard["guide"] == heard["own"][1:-3]  # steps 19 to 9
    heard["own"].clear()
    heard["guide"].clear()
    sample_normal_images(backbone, "plate", [1], steps=20, guide=guide, way=SamplerConfig(1.0, 0.0))
    assert len(heard["own"]) == 20 and not heard["guide"]  # nothing to guide


def test_the_predicted_noise_counts_as_often_as_the_way_says_in_every_move(monkeypatch):
    from defect_core.adaptation import normal_sampler as normals

    backbone, used = load_backbone("embedded"), []
    move = normals.ancestral_move
    monkeypatch.setattr(
        "defect_core.adaptation.normal_sampler._predict", lambda network, latents, *_: torch.ones_like(latents)
    )
    monkeypatch.setattr(normals, "ancestral_move", lambda z, noise, *rest: used.append(noise) or move(z, noise, *rest))
    for way in (SamplerConfig(1.0, 0.4, 1.25), SamplerConfig(1.0, 0.0, 1.25)):
        sample_normal_images(backbone, "plate", [1], way=way)
    # down to level 0.4, there again after two restarts, the last moves; all steps
    assert len(used) == 15 + 2 * 6 + 3 + 25
    assert all(torch.equal(noise, torch.full_like(noise, 1.25)) for noise in used)


def test_the_mean_of_the_good_images_sets_the_brightness_that_noise_alone_does_not():
    backbone = load_backbone("embedded")
    pale = [np.full((128, 128, 3), 235, np.uint8)] * 2
    mean = mean_latents(backbone, pale)
    assert mean.shape == (backbone.latent_channels, 1, 1)
    grey, light = (np.mean(sample_normal_images(backbone, "plate", [1, 2], steps=4, mean=m)) for m in (None, mean))
    assert light > grey + 5


def test_images_begun_from_references_keep_more_of_them_the_lower_the_level(good):
    backbone = load_backbone("embedded")
    references = [crop_image(example.image, Window(0, 0, 96, 96), backbone.resolution) for example in good[:2]]
    change = []
    for level in (0.04, 0.4, 1.0):
        images = sample_normal_images(backbone, "plate", [1, 2], references=references, level=level, batch_size=1)
        change.append(np.abs(np.array(images, float) - references).mean())
    assert change[0] < 0.6 * change[1] and change[1] < change[2]
    first, second = sample_normal_images(backbone, "plate", [1, 1], references=references, level=0.2)
    assert (first != second).any()  # each begins from its own


def _stage(good, root, settings=""):
    """Runs the stage in a project of its own; the folder that it leaves."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(
        "products: [plate]\nsources: {plate: {path: x, layout: mvtec}}\ngenerators: [crop-paste]\n"
        "arms: [real_only, crop-paste]\n"
        f"adapt: {{steps: 2, batch_size: 2, views: 4, check_every: 2, {settings}}}\n"
    )
    raw, records = root / "data/raw/plate", []
    for example in good:
        save_png(example.image, raw / example.name)
        records.append(Record("plate", "good", example.name, None, "train", example.name, 96, 96))
    (root / "data/split").mkdir()
    write_records(records, root / "data/split/plate.parquet")
    step.run(Project(root), "plate")
    return root / "data/backbone/plate"


def test_the_stage_leaves_a_backbone_its_curve_and_images_to_look_at(good, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "TRIED", 2)
    folder = _stage(good, tmp_path)
    images = [load_image(path) for path in sorted(folder.glob("drawn/*.png"))]
    assert len(images) == DRAWN and len({image.tobytes() for image in images}) == DRAWN
    assert load_backbone(folder).resolution == images[0].shape[0]
    assert [point["step"] for point in json.loads((folder / "adaptation.json").read_text())] == [0, 2]
    described = json.loads((folder / "drawing.json").read_text())
    rows = described["tried"]
    tried = {
        SamplerConfig(*(row[field] for field in SamplerConfig._fields)): [row[each] for each in DISTANCES]
        for row in rows
    }
    assert tuple(tried) == WAYS
    drawer = NormalSampler.load(folder, load_backbone(folder), load_backbone("embedded"), good)
    clear, grained = tried[drawer.way]
    assert min(clear, grained) == min(min(both) for both in tried.values())
    assert len({clear for clear, _ in tried.values()}) == len(WAYS)  # each is drawn in its own way
    # the plates have noise, which four steps of learning do not draw
    assert grained < clear and drawer.grain is not None
    [regrained] = drawer.grained(images[:1], [5])
    assert 2 < np.std(regrained.astype(float) - images[0]) < 8
    (folder / GRAIN).unlink()
    assert NormalSampler.load(folder, load_backbone(folder), None, good).grain is None  # none was chosen
    assert not (folder / WEIGHTS).exists()  # no step was for drawing alone


def test_a_network_that_draws_learns_apart_from_the_generators(good, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "TRIED", 2)
    folders = [_stage(good, tmp_path / str(steps), f"drawing_steps: {steps}") for steps in (0, 2)]
    same, more = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in folders)
    assert all(torch.equal(value, more[name]) for name, value in same.items())
    drawn = load_file(folders[1] / WEIGHTS)
    assert drawn.keys() == more.keys() and any(not torch.equal(value, more[name]) for name, value in drawn.items())
    drawer = NormalSampler.load(folders[1], load_backbone(folders[1]), None, good)
    assert all(torch.equal(value.half(), drawn[name]) for name, value in drawer.backbone.denoiser.state_dict().items())
    assert [point["step"] for point in json.loads((folders[1] / "drawing_adaptation.json").read_text())] == [0, 2]
    assert load_image(folders[1] / "drawn/00.png").shape == (128, 128, 3)
