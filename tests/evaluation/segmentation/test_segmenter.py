"""The segmenter learns, repeats under a seed, and is scored as it says."""

import numpy as np
import pytest
import torch

from defect_core.errors import InputError
from defect_core.evaluation.segmentation import Sample, SegmenterConfig
from defect_core.evaluation.segmentation.data import hold_out
from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
from defect_core.evaluation.segmentation.model import Segmenter, load_segmenter, save_segmenter
from defect_core.evaluation.segmentation.train import _validate, segmentation_loss, train_segmenter
from defect_core.metrics.features import load_lite0_state

CONFIG = SegmenterConfig(image_size=64, steps=30, batch_size=6)


def _toy(seed, count, defect=True):
    """Grey texture; a defect is a dark or bright blot with a coloured tint."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        image = 128 + rng.normal(0, 8, (64, 64, 3)) + np.linspace(-20, 20, 64)[:, None, None] * rng.choice([-1, 1])
        y, x = np.mgrid[:64, :64]
        centre, radius = rng.integers(10, 54, 2), rng.integers(4, 8)
        mask = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2) & defect
        image[mask] += np.array([70, -40, -60]) * rng.choice([-1, 1])
        samples.append(Sample(image.clip(0, 255).astype(np.uint8), mask))
    return samples


@pytest.fixture(scope="module")
def trained():
    return train_segmenter(_toy(0, 10), _toy(1, 10, False), [], CONFIG, seed=0, progress_label="toy")


def test_training_lifts_average_precision_far_above_an_untrained_network(trained):
    test = [*_toy(5, 8), *_toy(6, 4, False)]
    torch.manual_seed(0)
    before = evaluate_segmenter(Segmenter(CONFIG), test).scores["pixel_ap"]
    scores = evaluate_segmenter(trained.model, test).scores
    assert scores["pixel_ap"] > before + 0.4
    assert scores["pixel_ap"] > 0.6 and scores["image_auroc"] > 0.8


def test_the_curve_shows_falling_loss_and_a_held_out_score(trained):
    assert [p["step"] for p in trained.curve] == list(range(3, 31, 3))
    assert trained.curve[-1]["loss"] < 0.7 * trained.curve[0]["loss"]
    assert 0 <= trained.curve[-1]["val_pixel_ap"] <= 1


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    config = SegmenterConfig(image_size=32, steps=2, batch_size=4)
    real, good = ([Sample(s.image[:32, :32], s.mask[:32, :32]) for s in _toy(i, 6, i == 0)] for i in range(2))
    runs = []
    for seed in (4, 4, 5):
        torch.rand(1)  # whatever else has drawn from the global generator must not matter
        runs.append(train_segmenter(real, good, real, config, seed=seed).model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert any(not torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_training_leaves_the_global_generator_alone_and_the_frozen_stages_as_imagenet_made_them(trained):
    encoder = trained.model.network.encoder.model.state_dict()
    shipped = load_lite0_state()
    same = {name for name, value in encoder.items() if torch.equal(value, shipped[name])}
    assert "conv_stem.weight" in same and "blocks.1.0.conv_pw.weight" in same
    assert "blocks.4.0.conv_pw.weight" not in same
    assert {n for n in encoder if "running" in n} <= same  # batch statistics stay ImageNet's
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    config = SegmenterConfig(image_size=32, steps=1, batch_size=2)
    sample = Sample(np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool))
    train_segmenter([sample], [sample], [], config, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_loss_falls_towards_the_truth_and_is_finite_without_defects():
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, 0, 4:8, 4:8] = 1
    right, blank = (masks * 2 - 1) * 8, torch.full_like(masks, -8)
    assert segmentation_loss(right, masks) < 0.1 < segmentation_loss(blank, masks)
    assert segmentation_loss(blank, torch.zeros_like(masks)) < 0.2


def test_score_maps_are_per_image_whatever_the_batch(trained):
    images = np.stack([s.image for s in _toy(9, 5)])
    maps = trained.model.predict(images)
    assert maps.shape == (5, 64, 64) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    np.testing.assert_allclose(trained.model.predict(images, batch_size=2), maps, atol=1e-4)


def test_evaluation_states_its_protocol_and_reasons(trained):
    scores, maps, _ = evaluate_segmenter(trained.model, _toy(2, 3, False))
    assert scores["protocol"]["good_images"] == 3 and scores["protocol"]["defect_images"] == 0
    assert "5x5" in scores["protocol"]["image_score"]
    assert scores["pixel_ap"] is None and "no positives" in scores["reasons"]["pixel_ap"]
    assert len(maps) == 3
    with pytest.raises(InputError, match="no test image"):
        evaluate_segmenter(trained.model, [])


class _FixedMaps:
    """Stands in for a model: the good image has one bright pixel, the defect a wide dim blot."""

    def predict(self, images):
        maps = np.zeros(images.shape[:3], np.float32)
        maps[0, 20:40, 20:40] = 0.5
        maps[1, 5, 5] = 1.0
        return maps


def test_the_image_score_asks_for_area_and_not_for_one_bright_pixel():
    samples = [_toy(0, 1)[0], _toy(1, 1, False)[0]]
    assert evaluate_segmenter(_FixedMaps(), samples).scores["image_auroc"] == 1.0


def test_a_saved_segmenter_predicts_the_same_and_saves_the_same_bytes(trained, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_segmenter(trained.model, CONFIG, first)
    loaded = load_segmenter(first)
    images = np.stack([s.image for s in _toy(3, 2)])
    np.testing.assert_array_equal(loaded.predict(images), trained.model.predict(images))
    save_segmenter(loaded, CONFIG, second)
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(InputError, match=r"c\.safetensors: not found"):
        load_segmenter(tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no segmenter"):
        load_segmenter(tmp_path / "d.safetensors")


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="no real and no synthetic"):
        train_segmenter([], _toy(0, 2, False), [], CONFIG, seed=0)
    with pytest.raises(InputError, match="expected \\(32, 32, 3\\)"):
        train_segmenter(_toy(0, 2), [], [], SegmenterConfig(image_size=32), seed=0)
    with pytest.raises(InputError, match="no embedded weights"):
        Segmenter(SegmenterConfig(encoder="resnet18"))


@pytest.mark.parametrize("architecture", ["upernet", "deeplabv3plus", "segformer"])
def test_other_architectures_on_the_embedded_encoder_train_save_and_load(architecture, tmp_path):
    config = SegmenterConfig(image_size=64, steps=1, batch_size=2, architecture=architecture, validation_fraction=0)
    done = train_segmenter(_toy(0, 2), _toy(1, 2, False), [], config, seed=0)
    state = load_lite0_state()
    trunk = done.model.network.encoder.model.state_dict()
    assert torch.equal(trunk["conv_stem.weight"], state["conv_stem.weight"])  # frozen, so still ImageNet's
    save_segmenter(done.model, config, tmp_path / "s.safetensors")
    images = np.stack([s.image for s in _toy(2, 2)])
    loaded = load_segmenter(tmp_path / "s.safetensors").predict(images)
    assert loaded.shape == (2, 64, 64) and np.array_equal(loaded, done.model.predict(images))


def test_another_encoder_starts_at_random_and_mistakes_are_named():
    config = SegmenterConfig(image_size=32, encoder="resnet18", encoder_weights="none", frozen_stages=0)
    assert Segmenter(config).predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 32, 32)
    for wrong, line in (
        ({"architecture": "draem"}, "unet, upernet, deeplabv3plus, segformer"),
        ({"encoder": "resnet18"}, "no embedded weights for 'resnet18'"),
        ({"encoder": "resnet18", "encoder_weights": "none"}, "frozen_stages"),
        ({"encoder_weights": "best"}, "embedded, imagenet or none"),
    ):
        with pytest.raises(InputError, match=line):
            SegmenterConfig(**wrong)
    with pytest.raises(InputError, match="'resnet0' with unet"):
        Segmenter(SegmenterConfig(encoder="resnet0", encoder_weights="none", frozen_stages=0))


def test_the_best_model_on_validation_is_that_of_the_highest_point(trained):
    values = [point["val_pixel_ap"] for point in trained.curve]
    assert trained.best is not None and not trained.best.training
    good = _toy(1, 10, False)
    held = hold_out(_toy(0, 10), CONFIG.validation_fraction)[1]
    good = hold_out(good, min(CONFIG.validation_fraction, len(held) / len(good)))[1]
    assert _validate(trained.best, [*held, *good]) == pytest.approx(max(values), abs=1e-4)
    without = SegmenterConfig(image_size=64, steps=1, batch_size=2, validation_fraction=0)
    assert train_segmenter(_toy(0, 2), _toy(1, 2, False), [], without, seed=0).best is None
