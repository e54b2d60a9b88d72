"""Cross-fitted thresholds: what a fold sees, what decides a threshold, and the figures of a whole arm."""

import numpy as np
import pytest

from defect_core.evaluation.segmentation import thresholds
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import ArmData, ImageInfo, Sample, TrainingImages
from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
from defect_core.evaluation.segmentation.inspection import RegionRecorder, SeedOutcome, summarise_inspection
from defect_core.evaluation.segmentation.measure import measure_segmenter
from defect_core.evaluation.segmentation.thresholds import (
    CrossFit,
    assign_folds,
    cross_fit,
    missing_for_folds,
    stored_thresholds,
)
from defect_core.evaluation.training import TrainedModel
from defect_core.project.params import Params

SIDE = 32


def _image(level, defect=None, seed=0):
    """A grey image with noise, and a square defect whose side is `defect`."""
    image = np.random.default_rng(seed).integers(level - 10, level + 10, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    if defect:
        mask[8 : 8 + defect, 8 : 8 + defect] = True
        image[mask] = 220
    return Sample(image, mask)


def _info(name, defects=(), unit=None, area=4.0):
    return ImageInfo(name, unit or name, defects, area)


def _data(normals=24):
    real = [_image(90, 3 + i, i) for i in range(4)]
    normal = [_image(90, None, 10 + i) for i in range(normals)]
    synthetic = [_image(90, 6, 50), _image(90, 6, 51)]
    test = [_image(90, 2 + i, 70 + i) for i in range(6)] + [_image(90, None, 90 + i) for i in range(10)]
    kinds = [("cut",) if i < 3 else ("dent", "cut") for i in range(6)]
    return ArmData(
        [("p", "cut")] * 4,
        real,
        normal,
        synthetic,
        test,
        test_info=[_info(f"t{i}", kinds[i] if i < 6 else ()) for i in range(16)],
        training=TrainingImages(
            real,
            [_info(f"r{i}", ("cut",)) for i in range(4)],
            normal,
            [_info(f"n{i}") for i in range(normals)],
            list(range(normals)),
            [],
            [frozenset({"r0", "n0"}), frozenset({"r1", "n2"})],
        ),
    )


class _Brightness:
    """Scores a pixel by its grey level; `shift` moves all logits, as another training does."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def predict(self, images):
        logits = images.mean(-1) / 20 - 8 + self.shift
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def test_units_stay_in_one_fold_and_defect_types_are_spread():
    infos = [_info(f"{kind}{i}", (kind,), unit=f"{kind}{i // 2}") for kind in ("cut", "dent") for i in range(8)]
    folds = assign_folds(infos, 2)
    assert folds == [0, 0, 1, 1, 0, 0, 1, 1] * 2


def test_a_fold_sees_nothing_made_from_its_images(monkeypatch):
    data, seen = _data(), []

    def train(real, normal, synthetic, config, *_):
        seen.append((real, normal, synthetic, config.steps))
        return TrainedModel(_Brightness(), [])

    monkeypatch.setattr(thresholds, "train_segmenter", train)
    fitted = cross_fit(data, SegmenterConfig(image_size=SIDE, steps=40), 0, "p")
    # r0, r2, n0, n2, ... are held out first: both pairs show one of them. r1, r3, n1, ... next: the second pair has r1.
    assert [len(part) for part in seen[0][:3]] == [2, 12, 0] and seen[0][0][0] is data.real[1]
    assert [len(part) for part in seen[1][:3]] == [2, 12, 1] and seen[1][2][0] is data.synthetic[0]
    assert seen[0][3] == fitted.steps == 20
    assert len(fitted.normal) == 24 and len(fitted.defect) == 4 and fitted.defect.min() > fitted.normal.max()


def test_thresholds_do_not_depend_on_the_level_of_the_models(monkeypatch):
    """Fold models and final models whose logits differ by a constant reject the same images."""
    data, rejected = _data(), []
    for shifts, final in (((0.0, 0.0), 0.0), ((1.5, -2.0), 0.0), ((0.0, 0.0), 3.0)):
        models = iter([_Brightness(shift) for shift in shifts])
        monkeypatch.setattr(thresholds, "train_segmenter", lambda *_, m=models: TrainedModel(next(m), []))
        points = cross_fit(data, SegmenterConfig(image_size=SIDE), 0, "p").thresholds(_Brightness(final), data, "max")
        scores = evaluate_segmenter(_Brightness(final), data.test, "max").tables.score
        rejected.append([scores > points[key].threshold for key in ("0.05", "0.01")])
    assert (np.array(rejected[0]) == rejected[1]).all() and (np.array(rejected[0]) == rejected[2]).all()
    assert points["0.05"].support == "measured" and points["0.001"].support == "extrapolated"
    assert not rejected[0][1][6:].any() and rejected[0][1][:6].any()


def test_test_images_do_not_change_a_threshold(monkeypatch):
    monkeypatch.setattr(thresholds, "train_segmenter", lambda *_: TrainedModel(_Brightness(), []))
    data = _data()
    config = SegmenterConfig(image_size=SIDE)
    first = cross_fit(data, config, 0, "p").thresholds(_Brightness(), data, "max")
    data.test[:] = [_image(40, 9, 3)]
    assert cross_fit(data, config, 0, "p").thresholds(_Brightness(), data, "max") == first


def test_missing_images_are_named_in_one_line():
    assert missing_for_folds(_data(), 2) == ""
    assert missing_for_folds(_data(), 0).startswith("segment.folds is 0; expected at least 2")
    assert "5 real training defect images of different groups, found 4" in missing_for_folds(_data(), 5)
    assert "2 normal training images of different groups, found 1" in missing_for_folds(_data(normals=1), 2)
    with pytest.raises(ValueError, match="folds: 1; expected 0, or at least 2"):
        Params(products=["p"], segment={"folds": 1})


def _summary(data, points, seeds=(0,)):
    tests = []
    for _ in seeds:
        recorder = RegionRecorder({key: point.threshold for key, point in points.items()}, 1)
        evaluation = evaluate_segmenter(_Brightness(), data.test, "max", recorder)
        tests.append(SeedOutcome(evaluation._replace(thresholds=points), recorder.regions))
    fitted = CrossFit(np.zeros(24), np.zeros(4), 2, 20)
    return summarise_inspection(data, fitted, seeds, tests)


def test_figures_are_counted_by_hand():
    data = _data()
    data.test[5] = _image(90, None, 5)  # a defect that cannot be seen
    data.test[5].mask[8:15, 8:15] = True
    data.test[0].image[30, 30] = 255  # a false region on an image with a found defect
    data.test[6].image[20, 20] = 255  # a normal image that is rejected
    points = {
        "0.01": thresholds.OperatingPoint(0.01, 0.9, "extrapolated", "why"),
        "0.001": thresholds.OperatingPoint(0.001, None, "unavailable", "few"),
    }
    result = _summary(data, points, (0, 1))
    assert result["targets"]["0.001"] == {"target": 0.001, "support": "unavailable", "note": "few"}
    figures = result["targets"]["0.01"]
    assert figures["threshold"] == [0.9, 0.9]
    assert figures["escape"]["rate"] == round(1 / 6, 6) and figures["escape"]["count"] == 6
    assert figures["escape"]["interval"] == pytest.approx([0.0301, 0.5635], abs=1e-3)
    assert figures["overkill"]["rate"] == 0.1 and figures["overkill"]["count"] == 10
    assert {d: r["rate"] for d, r in figures["escape_by_defect"].items()} == {
        "cut": round(1 / 6, 6),
        "dent": round(1 / 3, 6),
    }
    assert figures["region_recall"]["rate"] == round(5 / 6, 6)
    assert figures["false_regions_per_image"] == round(2 / 16, 6)
    assert figures["smallest_found_px"] == {"all": [16, 16], "cut": [16, 16], "dent": [100, 100]}
    assert figures["largest_missed_px"]["all"] == [4 * 49] * 2
    # training areas are 36, 64, 100 and 144 px of the original image, so the edges are 64 and 100
    assert figures["recall_by_size"]["edges"] == [64.0, 100.0]
    assert [(b["count"], b["rate"]) for b in figures["recall_by_size"]["bins"]] == [(3, 1.0), (1, 1.0), (2, 0.5)]
    assert figures["recall_by_contrast"]["bins"][0]["rate"] == 0.0
    assert len(result["images"]["score"]) == 2 and result["images"]["defects"][3] == ["dent", "cut"]


def test_a_whole_arm_is_measured_with_and_without_folds():
    data = _data()
    config = SegmenterConfig(image_size=SIDE, steps=2, batch_size=4, seeds=(0,), synthetic_fraction=0.5)
    seen = []
    result = measure_segmenter(data, config, 0, "p", after_seed=lambda *a: seen.append(a[-1]))
    stored = stored_thresholds(data, config, seen[0])
    inspection = result["inspection"]
    assert inspection["protocol"]["held_out_normal"] == 24 and inspection["seeds"] == [0]
    assert set(inspection["targets"]) == {"0.001", "0.01", "0.05"}
    assert all(len(t["threshold"]) == 1 for t in inspection["targets"].values())
    assert stored["window"] == 3 and stored["image_score"] == "max_of_mean"
    for key, target in inspection["targets"].items():
        assert [stored["thresholds"][key]["threshold"]] == target["threshold"]
    without = measure_segmenter(data, config.model_copy(update={"folds": 0}), 0, "p")
    assert without.pop("inspection") == {"reason": "segment.folds is 0; expected at least 2 for thresholds"}
    unfitted = seen[0]._replace(thresholds={})
    assert "0" in stored_thresholds(data, config.model_copy(update={"folds": 0}), unfitted)["reason"]
    result.pop("inspection")
    assert without == result  # cross-fitting changes no other score
