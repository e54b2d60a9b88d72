"""Training, reproducibility, scores and files of the segmenter."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from defect_core.errors import InputError
from defect_core.evaluation.batches import hold_out
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample
from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
from defect_core.evaluation.segmentation.model import Segmenter, load_segmenter, save_segmenter
from defect_core.evaluation.segmentation.train import _pixel_ap, segmentation_loss, train_segmenter
from defect_core.metrics.features import load_lite0_state

SETTINGS = {"learning_rate": 5e-3, "synthetic_fraction": 0.5, "validation_fraction": 0.2}
CONFIG = SegmenterConfig(image_size=64, steps=30, batch_size=6, **SETTINGS)


def _toy(seed, count, defect=True):
    """Return grey textures; a defect is a dark or bright disc with a coloured tint."""
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


def test_training_improves_average_precision_over_an_untrained_network(trained):
    test = [*_toy(5, 8), *_toy(6, 4, False)]
    torch.manual_seed(0)
    before = evaluate_segmenter(Segmenter(CONFIG), test).scores["pixel_ap"]
    scores = evaluate_segmenter(trained.model, test).scores
    assert scores["pixel_ap"] > before + 0.4
    assert scores["pixel_ap"] > 0.6 and scores["image_auroc"] > 0.8


def test_the_curve_has_a_falling_loss_and_a_validation_score(trained):
    assert [p["step"] for p in trained.curve] == list(range(3, 31, 3))
    assert trained.curve[-1]["loss"] < 0.7 * trained.curve[0]["loss"]
    assert 0 <= trained.curve[-1]["val_pixel_ap"] <= 1


def test_the_seed_decides_the_model():
    config = SegmenterConfig(image_size=32, steps=2, batch_size=4, **SETTINGS)
    real, normal = ([Sample(s.image[:32, :32], s.mask[:32, :32]) for s in _toy(i, 6, i == 0)] for i in range(2))
    runs = []
    for seed in (4, 4, 5):
        torch.rand(1)  # The state of the global generator does not matter.
        runs.append(train_segmenter(real, normal, real, config, seed=seed).model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert any(not torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_training_changes_neither_the_global_generator_nor_frozen_stages(trained):
    encoder = trained.model.network.encoder.model.state_dict()
    embedded = load_lite0_state()
    same = {name for name, value in encoder.items() if torch.equal(value, embedded[name])}
    assert "conv_stem.weight" in same and "blocks.1.0.conv_pw.weight" in same
    assert "blocks.4.0.conv_pw.weight" not in same
    assert {n for n in encoder if "running" in n} <= same  # The batch statistics of ImageNet stay.
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    config = SegmenterConfig(image_size=32, steps=1, batch_size=2, **SETTINGS)
    sample = Sample(np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool))
    train_segmenter([sample], [sample], [], config, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_the_loss_is_small_at_the_truth_and_finite_without_defects():
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, 0, 4:8, 4:8] = 1
    correct, empty = (masks * 2 - 1) * 8, torch.full_like(masks, -8)
    assert segmentation_loss(correct, masks) < 0.1 < segmentation_loss(empty, masks)
    assert segmentation_loss(empty, torch.zeros_like(masks)) < 0.2


def test_score_maps_do_not_depend_on_the_batch_size(trained):
    images = np.stack([s.image for s in _toy(9, 5)])
    maps = trained.model.predict(images)
    assert maps.shape == (5, 64, 64) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    np.testing.assert_allclose(trained.model.predict(images, batch_size=2), maps, atol=1e-4)


def test_an_evaluation_contains_its_protocol_and_reasons(trained):
    scores, maps, *_ = evaluate_segmenter(trained.model, _toy(2, 3, False))
    assert scores["protocol"]["normal_images"] == 3 and scores["protocol"]["defect_images"] == 0
    assert "5x5" in scores["protocol"]["image_score"]
    assert scores["pixel_ap"] is None and "no positives" in scores["reasons"]["pixel_ap"]
    assert len(maps) == 3
    with pytest.raises(InputError, match="no test image"):
        evaluate_segmenter(trained.model, [])


class _FixedMaps:
    """Replaces a model: the normal image has one bright pixel, the defect a large dim square."""

    def predict(self, images):
        maps = np.zeros(images.shape[:3], np.float32)
        maps[0, 20:40, 20:40] = 0.5
        maps[1, 5, 5] = 1.0
        return maps


def test_one_bright_pixel_does_not_decide_the_image_score():
    samples = [_toy(0, 1)[0], _toy(1, 1, False)[0]]
    assert evaluate_segmenter(_FixedMaps(), samples).scores["image_auroc"] == 1.0


def test_a_loaded_segmenter_has_the_same_predictions_and_bytes(trained, tmp_path):
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


def test_wrong_input_is_an_error_that_names_it():
    with pytest.raises(InputError, match="no real and no synthetic"):
        train_segmenter([], _toy(0, 2, False), [], CONFIG, seed=0)
    with pytest.raises(InputError, match=r"expected \(32, 32, 3\)"):
        train_segmenter(_toy(0, 2), [], [], SegmenterConfig(image_size=32, **SETTINGS), seed=0)
    with pytest.raises(ValidationError, match="no embedded weights"):
        SegmenterConfig(encoder="resnet18")


@pytest.mark.parametrize("architecture", ["upernet", "deeplabv3plus", "segformer"])
def test_other_architectures_on_the_embedded_encoder_train_save_and_load(architecture, tmp_path):
    config = SegmenterConfig(image_size=64, steps=1, batch_size=2, learning_rate=5e-3, architecture=architecture)
    trained = train_segmenter(_toy(0, 2), _toy(1, 2, False), [], config, seed=0)
    state = load_lite0_state()
    trunk = trained.model.network.encoder.model.state_dict()
    assert torch.equal(trunk["conv_stem.weight"], state["conv_stem.weight"])  # The stem is frozen.
    save_segmenter(trained.model, config, tmp_path / "s.safetensors")
    images = np.stack([s.image for s in _toy(2, 2)])
    loaded = load_segmenter(tmp_path / "s.safetensors").predict(images)
    assert loaded.shape == (2, 64, 64) and np.array_equal(loaded, trained.model.predict(images))


def test_another_encoder_is_random_and_wrong_settings_are_refused():
    config = SegmenterConfig(image_size=32, encoder="resnet18", encoder_weights="none", frozen_stages=0)
    assert Segmenter(config).predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 32, 32)
    for wrong, message in (
        ({"architecture": "draem"}, "architecture.*unet.*upernet.*deeplabv3plus.*segformer"),
        ({"encoder": "resnet18"}, "no embedded weights for 'resnet18'"),
        ({"encoder": "resnet18", "encoder_weights": "none"}, "frozen_stages"),
        ({"encoder_weights": "best"}, "encoder_weights.*embedded.*imagenet.*none"),
    ):
        with pytest.raises(ValidationError, match=f"(?s){message}"):
            SegmenterConfig(**wrong)
    with pytest.raises(InputError, match="'resnet0' with unet"):
        Segmenter(SegmenterConfig(encoder="resnet0", encoder_weights="none", frozen_stages=0))


def test_the_best_model_is_that_of_the_highest_point_of_the_curve(trained):
    values = [point["val_pixel_ap"] for point in trained.curve]
    assert trained.best is not None and not trained.best.training
    normal = _toy(1, 10, False)
    held = hold_out(_toy(0, 10), CONFIG.validation_fraction)[1]
    normal = hold_out(normal, min(CONFIG.validation_fraction, len(held) / len(normal)))[1]
    assert _pixel_ap(trained.best, [*held, *normal]) == pytest.approx(max(values), abs=1e-4)
    without = CONFIG.model_copy(update={"steps": 1, "batch_size": 2, "validation_fraction": 0.0})
    assert train_segmenter(_toy(0, 2), _toy(1, 2, False), [], without, seed=0).best is None
