"""Asset checks on small files: each passes on correct data and fails on wrong data."""

import json
import shutil
from dataclasses import replace

import dagster as dg
import numpy as np
import pytest

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, pixel_digest, save_png, write_records
from defect_core.graph.instances import find_instance
from defect_core.project.paths import Project
from pipelines.checks import check_results, check_specs

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
SIZE = (32, 32)
NORMAL = np.full((*SIZE, 3), 90, np.uint8)
MASK = np.zeros(SIZE, bool)
MASK[4:8, 4:8] = True
GENERATED = NORMAL.copy()
GENERATED[MASK] = 200
ROW = ManifestRow(
    sample_id="crack-0", product="nut", defect="crack", image="images/0.png", mask="masks/0.png",
    generator="crop-paste", seed=1, source_image="good/0.png", source_mask=None, prompt=None, strength=None,
    mask_area=16, quality=1.0, accepted=True, reject_reason=None, model_digest=None,
    image_sha256=pixel_digest(GENERATED), change_outside=0.0,
)  # fmt: skip
REJECTED = replace(ROW, sample_id="crack-1", accepted=False, image=None, mask=None, reject_reason="too faint")


def _image(number):
    image = NORMAL.copy()
    image[MASK] = 10 * number
    return image


@pytest.fixture
def sample(tmp_path):
    """A project with a normal image and two cracks of `nut`, one for training and one for the test."""
    tmp_path.joinpath("params.yaml").write_text(
        "products: [nut, bolt]\nsources: {nut: {layout: demo}, bolt: {layout: demo}}\n"
        "generators: [crop-paste]\narms: [real_only, crop-paste, mix]\nsynthesize: {per_defect: 1}\n"
    )
    project = Project(tmp_path)
    records = []
    for image, defect, split in (
        ("good/0.png", "good", "train"),
        ("0.png", "crack", "train"),
        ("1.png", "crack", "test"),
    ):
        pixels = NORMAL if defect == "good" else _image(1 + int(image[0]))
        save_png(pixels, project.path(f"data/raw/nut/{image}"))
        mask = None if defect == "good" else f"masks/{image}"
        if mask:
            save_png(MASK, project.path(f"data/raw/nut/{mask}"))
        records.append(Record("nut", defect, image, mask, split, pixel_digest(pixels), 32, 32))
    write_records(records, project.path("data/raw/nut/records.parquet"))
    write_records(records, project.path("data/split/nut.parquet"))
    return project


def _check(project, name, **axes):
    instance = find_instance(name, project.params, product="nut", **axes)
    results = check_results(project, instance)
    assert [result.check_name for result in results] == [
        spec.name for spec in check_specs(instance.stage, project.params)
    ]
    return {result.check_name: result for result in results}


def _check_synthesize(project, rows, mask=MASK, image=GENERATED):
    """Write a set with one stored pair and the given rows, and run its checks."""
    folder = project.path("data/synthetic/nut/crop-paste")
    write_manifest(rows, folder / "manifest.parquet")
    save_png(image, folder / "images/0.png")
    save_png(mask, folder / "masks/0.png")
    return _check(project, "synthesize", generator="crop-paste")


def _failures(results):
    return {name: result.description for name, result in results.items() if not result.passed}


def test_correct_data_passes_all_checks(sample):
    assert not _failures(_check_synthesize(sample, [ROW, REJECTED]))
    assert not _failures(_check(sample, "ingest")) and not _failures(_check(sample, "split"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros(SIZE, bool)}, "crack-0: empty mask"),
        ({"image": np.zeros((32, 40, 3), np.uint8)}, "crack-0: image 40x32, mask 32x32"),
        ({"rows": [replace(ROW, image="images/gone.png")]}, "gone.png"),
        ({"rows": [replace(ROW, mask=None)]}, "crack-0"),
    ],
)
def test_a_pair_with_missing_or_unequal_files_fails(sample, changes, message):
    result = _check_synthesize(sample, **{"rows": [ROW], **changes})["pairs_aligned"]
    assert not result.passed and result.severity == ERROR
    assert message in result.description


@pytest.mark.parametrize(
    ("mask", "area", "message"),
    [
        (MASK.astype(np.uint8) * 128, 16, "16 pixels of its mask are neither black nor white"),
        (MASK, 17, "mask of 16 px, 17 in the manifest"),
        (np.ones(SIZE, bool), 1024, "mask covers the whole image"),
    ],
)
def test_a_grey_mismatched_or_full_mask_fails(sample, mask, area, message):
    result = _check_synthesize(sample, [replace(ROW, mask_area=area)], mask=mask)["masks_sane"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, f"crack-0: {message}")


def test_a_recorded_change_outside_the_mask_fails(sample):
    result = _check_synthesize(sample, [replace(ROW, change_outside=0.5)])["background_kept"]
    assert not result.passed and result.severity == ERROR
    assert result.description == "crack-0: changed by 0.5 grey levels outside its mask"
    assert _check_synthesize(sample, [replace(REJECTED, change_outside=0.5), ROW])["background_kept"].passed


def test_a_changed_background_pixel_fails_without_a_record(sample):
    image = GENERATED.copy()
    image[20, 20] = 91
    result = _check_synthesize(sample, [ROW], image=image)["background_kept"]
    assert result.description == "crack-0: 1 pixels outside its mask differ from good/0.png"


def test_an_accepted_copy_of_a_test_image_fails(sample):
    row = replace(ROW, image_sha256=pixel_digest(_image(2)))
    result = _check_synthesize(sample, [row], image=_image(2))["no_real_image"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, "crack-0 = 1.png (test)")


def test_too_few_accepted_pairs_of_a_defect_type_warn(sample):
    stain = replace(REJECTED, sample_id="stain-0", defect="stain")
    result = _check_synthesize(sample, [ROW, stain])["enough_accepted"]
    assert not result.passed and result.severity == WARN
    assert result.description == "stain: 0 of 1"
    assert not _check_synthesize(sample, [])["enough_accepted"].passed


def test_the_required_count_may_be_a_multiple_of_the_real_count(sample):
    params = sample.path("params.yaml")
    params.write_text(params.read_text().replace("per_defect: 1", "per_defect: 3x"))
    result = _check_synthesize(Project(sample.root), [ROW])["enough_accepted"]
    assert result.description == "crack: 1 of 3"  # One crack is a training image.


def test_a_mask_much_larger_than_real_masks_warns(sample):
    large = np.zeros(SIZE, bool)
    large[:13, :5] = True
    result = _check_synthesize(sample, [replace(ROW, mask_area=65)], mask=large)["mask_sizes_like_real"]
    assert (result.passed, result.severity) == (False, WARN)
    assert result.description == "crack-0: 6.35% of the image; real: 1.56% to 1.56%"
    large[0, 0] = False
    assert _check_synthesize(sample, [replace(ROW, mask_area=64)], mask=large)["mask_sizes_like_real"].passed


def test_a_training_file_that_equals_a_test_file_fails(sample):
    shutil.copy(sample.path("data/raw/nut/1.png"), sample.path("data/raw/nut/0.png"))
    result = _check(sample, "split")["disjoint_split"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, "0.png (train) = 1.png (test)")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(SIZE, bool), "1.png: the mask is empty"),
        (np.ones(SIZE, bool), "1.png: the mask covers the whole image"),
        (np.ones((16, 32), bool), "1.png: 32x32, mask 32x16"),
    ],
)
def test_an_empty_full_or_unequal_real_mask_fails(sample, mask, message):
    save_png(mask, sample.path("data/raw/nut/masks/1.png"))
    result = _check(sample, "ingest")["real_masks_sane"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, message)


def test_copies_of_training_images_warn(sample):
    def check_fraction(fraction):
        path = sample.path("metrics/score/nut/crop-paste.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        defects = {"crack": {"memorisation_copies": fraction}, "stain": {"memorisation_copies": None}}
        path.write_text(json.dumps({"scores": {"pooled": {}, "defects": defects}}))
        return _check(sample, "score", generator="crop-paste")["not_memorised"]

    assert check_fraction(0.1).passed
    result = check_fraction(0.25)
    assert (result.passed, result.severity, result.description) == (False, WARN, "crack: 25% copies")
    assert result.metadata["max_copies"].value == 0.25


def _check_segment(project, arm, **values):
    for name, value in values.items():
        path = project.path(f"metrics/segment/{name.replace('__', '/').replace('_paste', '-paste')}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mean": {"pixel_ap": value}}))
    (result,) = _check(project, "segment", arm=arm).values()
    return result


def test_an_arm_below_the_baseline_warns_in_any_order_of_runs(sample):
    result = _check_segment(sample, "crop-paste", nut__crop_paste=0.4)
    assert result.passed and result.metadata["checked"].value == 0
    result = _check_segment(sample, "real_only", nut__real_only=0.5, nut__mix=0.6, bolt__mix=0.1)
    assert not result.passed and result.severity == WARN
    assert result.description == "nut, crop-paste: 0.4000 < 0.5000"
    assert result.metadata["checked"].value == 2
    assert not _check_segment(sample, "crop-paste").passed and _check_segment(sample, "mix").passed
    assert _check_segment(sample, "crop-paste", nut__crop_paste=0.5).passed
    assert _check_segment(sample, "crop-paste", nut__crop_paste=None).metadata["checked"].value == 0
