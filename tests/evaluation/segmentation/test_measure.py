"""Results over several seeds: intervals, and the best models on the validation part."""

from dataclasses import replace

import numpy as np
import pytest

from defect_core.data.records import Record, record_rows, save_png, write_records
from defect_core.evaluation.segmentation import measure
from defect_core.evaluation.segmentation.measure import measure_segmenter, resolve_config
from defect_core.evaluation.training import TrainedModel
from defect_core.metrics.bootstrap import ImageTables
from defect_core.project.arm_data import load_arm_data
from defect_core.project.params import Params
from defect_core.project.paths import Project


class _Result:
    """Replaces `Evaluation`, without a network."""

    def __init__(self, value):
        self.scores = {"pixel_ap": value, "iou": None, "protocol": {}}
        rng = np.random.default_rng(0)
        counts = rng.integers(1, 9, (6, 4)).astype(float)
        ones = np.ones(6)
        self.tables = ImageTables(counts, counts[::-1], counts, ones, ones, 2 * ones, rng.random(6), ones > 0)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    rng, rows = np.random.default_rng(0), []
    for split in ("train", "test"):
        for defect in ("good", "dent"):
            name, mask = f"{defect}/{split}.png", None
            save_png(rng.integers(0, 255, (32, 32, 3), np.uint8), tmp_path / "data/raw/p" / name)
            if defect == "dent":
                mask = f"masks/{name}"
                save_png(np.eye(32, dtype=bool), tmp_path / "data/raw/p" / mask)
            rows.append(Record("p", defect, name, mask, split, f"{split}{defect}", 32, 32))
    (tmp_path / "data/split").mkdir()
    write_records(rows, tmp_path / "data/split/p.parquet")
    return project


def _measure(project):
    data, _ = load_arm_data(project, "p", [])
    return measure_segmenter(data, resolve_config(project.params.segment, data.defect_types), 0, "p real_only")


@pytest.mark.parametrize("validated", [False, True])
def test_each_score_has_an_interval_and_both_models_are_reported(project, monkeypatch, validated):
    project.__dict__["params"] = Params(segment={"image_size": 32, "seeds": (0, 1)})
    last, best = iter((0.4, 0.6)), iter((0.5, 0.9))

    def trained(*_):
        return TrainedModel("last", [], "best" if validated else None)

    def evaluated(model, _, image_score, *__):
        return _Result(next(last if model == "last" else best))

    monkeypatch.setattr(measure, "train_segmenter", trained)
    monkeypatch.setattr(measure, "evaluate_segmenter", evaluated)
    result = _measure(project)
    assert result["mean"]["pixel_ap"] == 0.5 and set(result["interval"]) == set(result["mean"])
    low, high = result["interval"]["pixel_ap"]
    assert 0 <= low < high <= 1
    assert result["protocol"]["network"].startswith("unet, tu-tf_efficientnet_lite0")
    if validated:
        assert result["best_on_validation"]["mean"]["pixel_ap"] == 0.7
    else:
        assert "best_on_validation" not in result


def test_the_automatic_fraction_depends_on_the_training_defects(project, monkeypatch):
    """Eight training dents: a fifth of the defect slots is synthetic, whatever the test split contains."""
    rows = record_rows(project.path("data/split/p.parquet"))
    dent = next(row for row in rows if row.split == "train" and row.mask)
    write_records([*rows, *(replace(dent, sha256=f"more{i}") for i in range(7))], project.path("data/split/p.parquet"))
    project.__dict__["params"] = Params(segment={"image_size": 32, "seeds": (0,)})
    fractions = []

    def trained(*arguments):
        fractions.append(arguments[3].synthetic_fraction)
        return TrainedModel("last", [], None)

    monkeypatch.setattr(measure, "train_segmenter", trained)
    monkeypatch.setattr(measure, "evaluate_segmenter", lambda *_: _Result(0.5))
    _measure(project)
    assert fractions == [0.2]
