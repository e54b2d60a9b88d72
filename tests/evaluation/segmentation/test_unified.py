"""One segmenter over all products: the scores of each product, their mean, and the stage."""

import json

import numpy as np
import pytest

from defect_core.data.records import Record, save_png, write_records
from defect_core.evaluation.segmentation.evaluate import Evaluation
from defect_core.evaluation.segmentation.measure import summarise_over_products
from defect_core.metrics.bootstrap import bootstrap_intervals, image_tables
from defect_core.metrics.localisation import localisation_scores
from defect_core.project.params import Params
from defect_core.project.paths import Project
from defect_core.stages.segment_unified import run


def _evaluation(seed, defects=True):
    rng = np.random.default_rng(seed)
    masks = np.zeros((8, 16, 16), bool)
    masks[::2, 4:8, 4:9] = defects
    maps = (rng.random(masks.shape) * 0.6 + 0.4 * masks * rng.random((8, 1, 1))).astype(np.float32)
    scores = localisation_scores(maps, masks, window=1)
    return Evaluation({**scores, "protocol": {}}, maps, image_tables(maps, masks, 1))


def test_the_mean_over_products_has_a_narrower_interval_than_each_product():
    results = {name: [_evaluation(10 * number + seed) for seed in range(3)] for number, name in enumerate("abcd")}
    result = summarise_over_products((0, 1, 2), results, 0)
    value = np.array([[each.scores["pixel_ap"] for each in row] for row in results.values()])
    assert result["mean"]["pixel_ap"] == pytest.approx(value.mean(), abs=1e-5)
    assert result["std"]["pixel_ap"] == pytest.approx(value.mean(0).std(ddof=1), abs=1e-5)
    assert result["products"]["b"]["mean"]["pixel_ap"] == pytest.approx(value[1].mean(), abs=1e-5)
    low, high = result["interval"]["pixel_ap"]
    assert low <= result["mean"]["pixel_ap"] <= high and result["reasons"] == {}
    widths = [np.ptp(bootstrap_intervals([r.tables for r in row], 0)["pixel_ap"]) for row in results.values()]
    assert high - low < 0.75 * np.mean(widths), "four products have four times the test images"


def test_a_score_that_is_undefined_on_one_product_has_no_mean():
    result = summarise_over_products(
        (0, 1), {"a": [_evaluation(0), _evaluation(1)], "b": [_evaluation(2, False)] * 2}, 0
    )
    assert result["mean"]["pixel_ap"] is result["interval"]["pixel_ap"] is None
    assert result["reasons"]["pixel_ap"].startswith("b: no positives")
    assert result["products"]["a"]["mean"]["pixel_ap"] is not None
    json.dumps(result, allow_nan=False)


def test_one_network_is_trained_on_all_products(tmp_path):
    (tmp_path / "data/split").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for product in ("p", "q"):
        rows = []
        for number, (split, defect) in enumerate([(s, d) for s in ("train", "test") for d in ("good", "dent")]):
            name, mask = f"{defect}/{number}.png", None
            save_png(rng.integers(0, 255, (32, 32, 3), np.uint8), tmp_path / f"data/raw/{product}" / name)
            if defect == "dent":
                mask = f"masks/{name}"
                save_png(np.eye(32, dtype=bool), tmp_path / f"data/raw/{product}" / mask)
            rows.append(Record(product, defect, name, mask, split, f"{product}{number}", 32, 32))
        write_records(rows, tmp_path / f"data/split/{product}.parquet")
    project = Project(tmp_path)
    segment = {"image_size": 32, "seeds": (0,), "steps": 1, "batch_size": 2, "image_score": "max"}
    project.__dict__["params"] = Params(products=("p", "q"), segment=segment, segment_unified={})
    run(project, "real_only")
    result = json.loads((tmp_path / "metrics/segment_unified/real_only.json").read_text())
    assert set(result["products"]) == {"p", "q"} and result["protocol"]["steps"] == 2
    assert result["protocol"]["train_defects"] == 2 and result["protocol"]["defect_images"] == 2
    assert result["protocol"]["image_score"] == "max of the map"
    assert result["products"]["q"]["protocol"]["defect_images"] == 1
    assert (tmp_path / "data/segment_unified/real_only/segmenter.safetensors").is_file()
