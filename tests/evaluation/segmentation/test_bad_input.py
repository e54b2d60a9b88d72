"""Unusual input folders: each is accepted or refused with one line; each undefined score has a reason."""

import json

import numpy as np
import pytest
from PIL import Image

from defect_core.data.layouts.ingest import ingest_source
from defect_core.data.records import Record, load_image, load_mask, record_rows, save_png, write_records
from defect_core.data.splits import split_records
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.measure import measure_segmenter, resolve_config
from defect_core.project.arm_data import load_arm_data
from defect_core.project.params import Params
from defect_core.project.paths import Project

SIDE = 48


def _scene(seed, defective, side=SIDE):
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (side, side, 3), dtype=np.uint8)
    mask = np.zeros((side, side), bool)
    if defective:
        mask[10:20, 12:24] = True
        image[mask] = 220
    return image, mask


def _measure(root, rows, after_seed=None, **settings):
    (root / "data/split").mkdir(parents=True, exist_ok=True)
    write_records(rows, root / "data/split/p.parquet")
    project = Project(root)
    segment = {"image_size": 32, "seeds": (0,), "steps": 1, "batch_size": 2, "folds": 0, **settings}
    project.__dict__["params"] = Params(products=("p",), segment=segment)
    data, _ = load_arm_data(project, "p", [])
    config = resolve_config(project.params.segment, data.defect_types)
    result = measure_segmenter(data, config, project.params.seed, "p real_only", after_seed=after_seed)
    json.dumps(result, allow_nan=False)
    assert set(result["reasons"]) == {name for name, value in result["mean"].items() if value is None}
    assert all(len(reason) > 5 for reason in result["reasons"].values())
    return result


def _rows(root, sides, empty=()):
    """Return records of (split, defect) with their files; the masks of those in `empty` have no defect pixel."""
    rows = []
    for number, (split, defect) in enumerate(sides):
        image, mask = _scene(number, defect != "good")
        name = f"{defect}/{number}.png"
        save_png(image, root / "data/raw/p" / name)
        mask_name = None if defect == "good" else f"masks/{name}"
        if mask_name:
            save_png(mask & (number not in empty), root / "data/raw/p" / mask_name)
        rows.append(Record("p", defect, name, mask_name, split, f"{number}", SIDE, SIDE))
    return rows


TRAIN = [("train", "good"), ("train", "dent")]


@pytest.mark.parametrize(
    ("test", "undefined", "reason"),
    [
        ([("test", "dent")], {"image_auroc"}, "no negatives"),
        ([("test", "good")], {"pixel_ap", "pro", "iou", "image_auroc", "image_ap"}, "no positives"),
        ([("test", "dent"), ("test", "good")], set(), ""),
    ],
)
def test_each_undefined_score_of_a_single_test_image_has_a_reason(tmp_path, test, undefined, reason):
    result = _measure(tmp_path, _rows(tmp_path, [*TRAIN, *test]))
    assert undefined <= set(result["reasons"])
    assert not undefined or any(reason in line for line in result["reasons"].values())
    assert "pixel_f1_threshold" not in result["mean"] and len(result["mean"]) == 8


def test_a_missing_test_image_or_training_defect_is_an_error(tmp_path):
    with pytest.raises(InputError, match="segment: no test image; expected at least one"):
        _measure(tmp_path, _rows(tmp_path, TRAIN))
    with pytest.raises(InputError, match="no real and no synthetic defect image"):
        _measure(tmp_path, _rows(tmp_path, [("train", "good"), ("test", "dent")]))


def test_images_with_empty_masks_count_as_normal_images(tmp_path):
    sides = [*TRAIN, ("test", "dent"), ("test", "dent"), ("test", "good")]
    result = _measure(tmp_path, _rows(tmp_path, sides, empty=(2, 3)))
    assert "no positives" in result["reasons"]["pixel_ap"] and result["protocol"]["defect_images"] == 0


def test_the_validation_part_contains_only_training_images(tmp_path):
    """Other test images change the scores, but neither the curve nor the choice of the best model."""
    sides = [("train", "good")] * 4 + [("train", "dent")] * 4 + [("test", "dent"), ("test", "good")]
    results = []
    for shift in (0, 40):
        root = tmp_path / str(shift)
        rows = _rows(root, sides)
        for number in (8, 9):
            image, mask = _scene(number + shift, number == 8)
            save_png(image, root / "data/raw/p" / rows[number].image)
            if rows[number].mask:
                save_png(mask.T, root / "data/raw/p" / rows[number].mask)
        trainings = []

        def keep(number, config, trained, result, trainings=trainings):
            weights = {k: v.clone() for k, v in trained.best.state_dict().items()}
            trainings.append((trained.curve, weights))

        results.append((_measure(root, rows, keep, steps=10, validation_fraction=0.25), trainings[0]))
    (one, (curve, best)), (other, (curve_other, best_other)) = results
    assert curve == curve_other and all(np.array_equal(v, best_other[k]) for k, v in best.items())
    assert one["per_seed"] != other["per_seed"]
    assert one["protocol"]["validation_defects"] == 1 and set(one["best_on_validation"]["mean"]) == set(one["mean"])
    assert set(one["best_on_validation"]) >= {"mean", "std", "interval", "reasons", "per_seed"}


def _save(folder, name, array, mode=None):
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(folder / name)


@pytest.fixture
def folders(tmp_path):
    """A product with images of several sizes, channels and depths, and masks of 1, 255, RGB and 16 bits."""
    source = tmp_path / "source"
    for number in range(4):
        image, _ = _scene(number, False, 40 + 8 * number)
        _save(source / "good", f"{number}.png", image, (None, "L", "RGBA", "P")[number])
    for number in range(4):
        image, mask = _scene(10 + number, True, 48 + 8 * number)
        if number == 1:
            _save(source / "dent", "1.png", image[..., 0].astype(np.uint16) * 257)
        else:
            _save(source / "dent", f"{number}.png", image, ("L", None, "RGBA", None)[number])
        values = (mask * 1).astype(np.uint8)
        if number == 1:
            values = (mask * 255).astype(np.uint8)
        elif number == 2:
            values = np.repeat((mask * 128).astype(np.uint8)[..., None], 3, 2)
        elif number == 3:
            values = mask.astype(np.uint16) * 40000
        _save(source / "dent", f"{number}_mask.png", values)
    return source


def test_sizes_channels_depths_and_mask_values_may_differ(folders, tmp_path):
    summary = ingest_source(folders, "p", tmp_path / "data/raw/p", layout="folder")
    assert summary["defects"] == {"dent": 4} and summary["good"] == 4
    records = record_rows(tmp_path / "data/raw/p/records.parquet")
    assert len({(r.width, r.height) for r in records}) == 5
    for record in records:
        image = load_image(tmp_path / "data/raw/p" / record.image)
        assert image.dtype == np.uint8 and image.shape == (record.height, record.width, 3)
        if record.mask:
            mask = load_mask(tmp_path / "data/raw/p" / record.mask)
            assert mask.sum() == 120 and (image[mask] == 220).all()
    result = _measure(tmp_path, split_records(records, "half"))
    assert result["reasons"] == {} and result["protocol"]["defect_images"] == 2


def test_an_empty_mask_is_refused_or_left_out_as_configured(folders, tmp_path):
    _save(folders / "dent", "2_mask.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match=r"2_mask\.png: the mask is empty; expected defect pixels, or .*leave_out"):
        ingest_source(folders, "p", tmp_path / "out", layout="folder")
    summary = ingest_source(folders, "p", tmp_path / "out", layout="folder", empty_masks="leave_out")
    assert summary["left_out"] == [{"image": "dent/2.png", "reason": "empty mask"}]
    assert summary["defects"] == {"dent": 3}


def test_a_single_example_or_a_mask_of_another_size_is_an_error(folders, tmp_path):
    _save(folders / "scratch", "0.png", _scene(0, True)[0])
    _save(folders / "scratch", "0_mask.png", _scene(0, True)[1].astype(np.uint8) * 255)
    with pytest.raises(InputError, match=r"defect 'scratch' has 1 usable example.*at least 3"):
        ingest_source(folders, "p", tmp_path / "out", layout="folder")
    _save(folders / "scratch", "0_mask.png", np.full((40, 44), 255, np.uint8))
    with pytest.raises(InputError, match=r"0_mask\.png: 44x40 pixels, its image 48x48; expected the same size"):
        ingest_source(folders, "p", tmp_path / "out", layout="folder")
