"""Training, reproducibility, initial weights, scores and stage of the classifier."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from torchvision.models import resnet18

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, save_png, write_records
from defect_core.errors import InputError
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import View
from defect_core.evaluation.classification.evaluate import prediction_intervals, score_predictions
from defect_core.evaluation.classification.train import Classifier, load_weights, train_classifier
from defect_core.evaluation.weights import find_weights
from defect_core.project.params import Params
from defect_core.project.paths import Project
from defect_core.stages.classify import run

CONFIG = ClassifierConfig(image_size=32, steps=40, batch_size=8, learning_rate=1e-3, architecture="resnet18")


def _views(seed, count):
    """Return views of two defect types on grey: a bright square and a dark square."""
    rng, views = np.random.default_rng(seed), []
    for number in range(count):
        image = rng.normal(128, 10, (32, 32, 3))
        y, x = rng.integers(4, 20, 2)
        image[y : y + 8, x : x + 8] += 90 if number % 2 else -90
        views.append(View(image.clip(0, 255).astype(np.uint8), number % 2))
    return views


def test_training_improves_accuracy_and_the_seed_decides_the_model():
    real, test = _views(0, 6), _views(1, 60)
    trained = train_classifier(real, _views(2, 10), 2, CONFIG, seed=0)
    predicted = trained.model.predict(np.stack([view.image for view in test]))
    assert np.allclose(predicted.sum(1), 1, atol=1e-5)
    assert (predicted.argmax(1) == [view.label for view in test]).mean() >= 0.9
    assert [p["step"] for p in trained.curve][-1] == CONFIG.steps and trained.best is None
    short = ClassifierConfig(
        image_size=32, steps=2, batch_size=2, architecture="mobilenet_v3_small", validation_fraction=0.34
    )
    states = []
    for seed in (3, 3, 4):
        torch.rand(1)  # The state of the global generator does not matter.
        states.append(train_classifier(real, [], 2, short, seed))
    assert all(torch.equal(v, states[1].model.state_dict()[k]) for k, v in states[0].model.state_dict().items())
    assert any(not torch.equal(v, states[2].model.state_dict()[k]) for k, v in states[0].model.state_dict().items())
    assert states[0].best is not None and 0 <= states[0].curve[-1]["val_accuracy"] <= 1


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = np.append(np.arange(3), rng.integers(0, 3, 40)), rng.integers(0, 3, 43)
    scores = score_predictions(truth, predicted, ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-6)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-6)
    assert scores["confusion"] == confusion_matrix(truth, predicted).tolist() and not scores["reasons"]


def test_a_score_without_test_images_has_a_reason():
    scores = score_predictions(np.array([0, 0]), np.array([0, 1]), ["a", "b"])
    assert scores["recall_b"] is None and scores["reasons"] == {"recall_b": "no test image of b"}
    assert scores["balanced_accuracy"] == scores["recall_a"] == 0.5
    none = score_predictions(np.zeros(0, int), np.zeros(0, int), ["a", "b"])
    assert none["accuracy"] is None and none["reasons"]["accuracy"] == "no test image"
    assert "NaN" not in json.dumps([scores, none])


def test_intervals_contain_the_score_and_narrow_with_more_images():
    widths = []
    for count in (20, 200):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 2, count)
        predictions = [np.where(rng.random(count) < 0.8, truth, 1 - truth) for _ in range(2)]
        low, high = prediction_intervals(truth, predictions, ["a", "b"], 0)["accuracy"]
        assert low <= np.mean([(predicted == truth).mean() for predicted in predictions]) <= high
        assert prediction_intervals(truth, predictions, ["a", "b"], 0)["accuracy"] == [low, high]
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    # The second defect type has one image, which a third of the resamples lacks. The others decide the interval.
    assert prediction_intervals(np.array([0] * 9 + [1]), [np.zeros(10, int)], ["a", "b"], 0)["recall_b"] == [0, 0]
    assert prediction_intervals(np.array([0] * 9), [np.zeros(9, int)], ["a", "b"], 0)["recall_b"] is None


def test_all_layers_but_the_last_are_loaded_from_a_file(tmp_path, monkeypatch):
    torch.manual_seed(1)
    state = {name: tensor.contiguous() for name, tensor in resnet18(num_classes=1000).state_dict().items()}
    save_file(state, tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(tmp_path))
    file = find_weights("resnet18.safetensors", tmp_path / "elsewhere", "classify.weights", "a file")
    model = Classifier("resnet18", 3)
    head = model.network.fc.weight.clone()
    load_weights(model, file)
    assert torch.equal(model.network.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert torch.equal(model.network.fc.weight, head)
    message = r"classify\.weights: nowhere is neither in the project nor in DEFECTORY_WEIGHTS; expected a file"
    with pytest.raises(InputError, match=message):
        find_weights("nowhere", tmp_path, "classify.weights", "a file")
    with pytest.raises(InputError, match=r"features\.0\.0\.weight is missing"):
        load_weights(Classifier("mobilenet_v3_small", 2), file)
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"bad\.safetensors: not a safetensors file"):
        load_weights(model, tmp_path / "bad.safetensors")


def test_a_defect_type_without_an_image_is_refused():
    with pytest.raises(InputError, match="no image to train on"):
        train_classifier(_views(0, 1), [], 2, CONFIG, 0)


def _project(root, defects):
    rows = []
    for split, count in (("train", 2), ("test", 3)):
        for defect in (*defects, "good"):
            for number in range(count):
                name, mask = f"{defect}/{split}{number}.png", None
                view = _views(number, 2)[defects.index(defect) % 2 if defect != "good" else 0]
                save_png(view.image, root / "data/raw/p" / name)
                if defect != "good":
                    mask = f"masks/{name}"
                    save_png(np.eye(32, dtype=bool), root / "data/raw/p" / mask)
                rows.append(Record("p", defect, name, mask, split, name, 32, 32))
    (root / "data/split").mkdir()
    write_records(rows, root / "data/split/p.parquet")
    pairs = []
    for defect in defects:
        folder = root / "data/synthetic/p/crop-paste"
        save_png(_views(7, 2)[defects.index(defect) % 2].image, folder / f"{defect}.png")
        save_png(np.eye(32, dtype=bool), folder / f"{defect}_mask.png")
        pairs.append(
            ManifestRow(
                sample_id=defect, product="p", defect=defect, image=f"{defect}.png", mask=f"{defect}_mask.png",
                generator="crop-paste", seed=0, source_image=None, source_mask=None, prompt=None, strength=None,
                mask_area=32, quality=1.0, accepted=True, reject_reason=None, model_digest=None, image_sha256=None,
            )
        )  # fmt: skip
    write_manifest(pairs, root / "data/synthetic/p/crop-paste/manifest.parquet")
    project = Project(root)
    settings = {"image_size": 32, "steps": 2, "batch_size": 4, "architecture": "mobilenet_v3_small", "seeds": (0, 1)}
    project.__dict__["params"] = Params(products=("p",), classify=settings, generators=("crop-paste",))
    return project


def test_the_stage_writes_its_results_and_protocol(tmp_path):
    project = _project(tmp_path, ("dent", "hole"))
    results = {}
    for arm in ("real_only", "crop-paste", "crop-paste-at-25"):
        run(project, "p", arm)
        results[arm] = json.loads((tmp_path / f"metrics/classify/p/{arm}.json").read_text())
        assert (tmp_path / f"data/classify/p/{arm}/classifier.safetensors").is_file()
        predictions = json.loads((tmp_path / f"data/classify/p/{arm}/predictions.json").read_text())
        assert [(each["seed"], len(each["truth"]), len(each["predicted"])) for each in predictions] == [
            (0, 6, 6),
            (1, 6, 6),
        ]
    result = results["crop-paste-at-25"]
    assert result["classes"] == ["dent", "hole"] and len(result["per_seed"]) == 2
    assert np.sum(result["per_seed"][0]["confusion"]) == 6, "normal images are not used"
    assert {arm: each["protocol"]["synthetic_fraction"] for arm, each in results.items()} == {
        "real_only": 0.0,
        "crop-paste": 0.5,
        "crop-paste-at-25": 0.25,
    }
    assert (
        set(result["interval"])
        == set(result["mean"])
        == {"accuracy", "balanced_accuracy", "recall_dent", "recall_hole"}
    )
    steps = {(each["protocol"]["steps"], each["protocol"]["batch_size"]) for each in results.values()}
    assert steps == {(2, 4)}
    before = (tmp_path / "metrics/classify/p/crop-paste.json").read_bytes()
    run(project, "p", "crop-paste")
    assert (tmp_path / "metrics/classify/p/crop-paste.json").read_bytes() == before


def test_a_product_with_one_defect_type_has_no_scores_but_a_reason(tmp_path):
    run(_project(tmp_path, ("dent",)), "p", "real_only")
    result = json.loads((tmp_path / "metrics/classify/p/real_only.json").read_text())
    assert result["mean"]["accuracy"] is None
    assert result["reasons"]["accuracy"] == "p has 1 defect type(s) to train on; expected at least 2"
