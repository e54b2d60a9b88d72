"""Asset checks on files written by hand: each passes on good data and fails on bad."""

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
DRAWN = NORMAL.copy()
DRAWN[MASK] = 200
ROW = ManifestRow(
    sample_id="crack-0", product="nut", defect="crack", image="images/0.png", mask="masks/0.png",
    generator="crop-paste", seed=1, source_image="good/0.png", source_mask=None, prompt=None, strength=None,
    mask_area=16, quality=1.0, accepted=True, reject_reason=None, model_digest=None,
    image_sha256=pixel_digest(DRAWN), change_outside=0.0,
)  # fmt: skip
REJECTED = replace(ROW, sample_id="crack-1", accepted=False, image=None, mask=None, reject_reason="too faint")


def _image(number):
    image = NORMAL.copy()
    image[MASK] = 10 * number
    return image


@pytest.fixture
def sample(tmp_path):
    """A project with a good image and two cracks of `nut`, one on each side of the split."""
    tmp_path.joinpath("params.yaml").write_text(
        "products: [nut, bolt]\nsources: {nut: {layout: demo}, bolt: {layout: demo}}\n"
        "generators: [crop-paste]\narms: [real_only, crop-paste, mix]\nsynthesize: {per_defect: 1}\n"
    )
    project = Project(tmp_path)
    records = []
    for image, defect, side in (
        ("good/0.png", "good", "train"),
        ("0.png", "crack", "train"),
        ("1.png", "crack", "test"),
    ):
        pixels = NORMAL if defect == "good" else _image(1 + int(image[0]))
        save_png(pixels, project.path(f"data/raw/nut/{image}"))
        mask = None if defect == "good" else f"masks/{image}"
        if mask:
            save_png(MASK, project.path(f"data/raw/nut/{mask}"))
        records.append(Record("nut", defect, image, mask, side, pixel_digest(pixels), 32, 32))
    write_records(records, project.path("data/raw/nut/records.parquet"))
    write_records(records, project.path("data/split/nut.parquet"))
    return project


def _checked(project, name, **axes):
    instance = find_instance(name, project.params, product="nut", **axes)
    results = check_results(project, instance)
    assert [result.check_name for result in results] == [
        spec.name for spec in check_specs(instance.stage, project.params)
    ]
    return {result.check_name: result for result in results}


def _synthesised(project, rows, mask=MASK, image=DRAWN):
    """Write a set of one kept pair and the given rows, and check it."""
    folder = project.path("data/synthetic/nut/crop-paste")
    write_manifest(rows, folder / "manifest.parquet")
    save_png(image, folder / "images/0.png")
    save_png(mask, folder / "masks/0.png")
    return _checked(project, "synthesize", generator="crop-paste")


def _failed(results):
    return {name: result.description for name, result in results.items() if not result.passed}


def test_good_data_passes(sample):
    assert not _failed(_synthesised(sample, [ROW, REJECTED]))
    assert not _failed(_checked(sample, "ingest")) and not _failed(_checked(sample, "split"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": np.zeros(SIZE, bool)}, "crack-0: empty mask"),
        ({"image": np.zeros((32, 40, 3), np.uint8)}, "crack-0: image 40x32, mask 32x32"),
        ({"rows": [replace(ROW, image="images/gone.png")]}, "gone.png"),
        ({"rows": [replace(ROW, mask=None)]}, "crack-0"),
    ],
)
def test_pairs_that_do_not_fit_fail(sample, changes, said):
    result = _synthesised(sample, **{"rows": [ROW], **changes})["pairs_aligned"]
    assert not result.passed and result.severity == ERROR
    assert said in result.description


@pytest.mark.parametrize(
    ("mask", "area", "said"),
    [
        (MASK.astype(np.uint8) * 128, 16, "16 pixels of its mask are neither black nor white"),
        (MASK, 17, "mask of 16 px, 17 in the manifest"),
        (np.ones(SIZE, bool), 1024, "mask covers the whole image"),
    ],
)
def test_masks_that_make_no_sense_fail(sample, mask, area, said):
    result = _synthesised(sample, [replace(ROW, mask_area=area)], mask=mask)["masks_sane"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, f"crack-0: {said}")


def test_a_change_outside_the_mask_fails_a_method_that_promised_none(sample):
    result = _synthesised(sample, [replace(ROW, change_outside=0.5)])["background_kept"]
    assert not result.passed and result.severity == ERROR
    assert result.description == "crack-0: changed by 0.5 grey levels outside its mask"
    assert _synthesised(sample, [replace(REJECTED, change_outside=0.5), ROW])["background_kept"].passed


def test_a_background_is_looked_at_and_not_only_its_record(sample):
    image = DRAWN.copy()
    image[20, 20] = 91
    result = _synthesised(sample, [ROW], image=image)["background_kept"]
    assert result.description == "crack-0: 1 pixels outside its mask are not those of good/0.png"


def test_an_accepted_test_image_is_a_leak(sample):
    row = replace(ROW, image_sha256=pixel_digest(_image(2)))
    result = _synthesised(sample, [row], image=_image(2))["no_real_image"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, "crack-0 = 1.png (test)")


def test_too_few_accepted_pairs_warn_by_defect(sample):
    stain = replace(REJECTED, sample_id="stain-0", defect="stain")
    result = _synthesised(sample, [ROW, stain])["enough_accepted"]
    assert not result.passed and result.severity == WARN
    assert result.description == "stain: 0 of 1"
    assert not _synthesised(sample, [])["enough_accepted"].passed


def test_a_multiple_of_the_real_count_is_understood(sample):
    params = sample.path("params.yaml")
    params.write_text(params.read_text().replace("per_defect: 1", "per_defect: 3x"))
    result = _synthesised(Project(sample.root), [ROW])["enough_accepted"]
    assert result.description == "crack: 1 of 3"  # one crack is on the training side


def test_a_mask_of_another_size_than_real_ones_warns(sample):
    large = np.zeros(SIZE, bool)
    large[:13, :5] = True
    result = _synthesised(sample, [replace(ROW, mask_area=65)], mask=large)["mask_sizes_like_real"]
    assert (result.passed, result.severity) == (False, WARN)
    assert result.description == "crack-0: 6.35% of the image; real ones 1.56% to 1.56%"
    large[0, 0] = False
    assert _synthesised(sample, [replace(ROW, mask_area=64)], mask=large)["mask_sizes_like_real"].passed


def test_a_test_image_copied_over_a_training_image_is_a_leak(sample):
    shutil.copy(sample.path("data/raw/nut/1.png"), sample.path("data/raw/nut/0.png"))
    result = _checked(sample, "split")["disjoint_split"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, "0.png (train) = 1.png (test)")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros(SIZE, bool), "1.png: its mask marks nothing of it"),
        (np.ones(SIZE, bool), "1.png: its mask marks all of it"),
        (np.ones((16, 32), bool), "1.png: 32x32, mask 32x16"),
    ],
)
def test_a_real_mask_that_makes_no_sense_fails(sample, mask, said):
    save_png(mask, sample.path("data/raw/nut/masks/1.png"))
    result = _checked(sample, "ingest")["real_masks_sane"]
    assert (result.passed, result.severity, result.description) == (False, ERROR, said)


def test_copies_of_training_images_warn(sample):
    def scored(share):
        path = sample.path("metrics/score/nut/crop-paste.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        defects = {"crack": {"memorisation_copies": share}, "stain": {"memorisation_copies": None}}
        path.write_text(json.dumps({"scores": {"pooled": {}, "defects": defects}}))
        return _checked(sample, "score", generator="crop-paste")["not_memorised"]

    assert scored(0.1).passed
    result = scored(0.25)
    assert (result.passed, result.severity, result.description) == (False, WARN, "crack: 25% copies")
    assert result.metadata["most_copies"].value == 0.25


def _segmented(project, arm, **values):
    for name, value in values.items():
        path = project.path(f"metrics/segment/{name.replace('__', '/').replace('_paste', '-paste')}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mean": {"pixel_ap": value}}))
    (result,) = _checked(project, "segment", arm=arm).values()
    return result


def test_an_arm_below_the_baseline_warns_whichever_was_measured_last(sample):
    result = _segmented(sample, "crop-paste", nut__crop_paste=0.4)
    assert result.passed and result.metadata["looked_at"].value == 0
    result = _segmented(sample, "real_only", nut__real_only=0.5, nut__mix=0.6, bolt__mix=0.1)
    assert not result.passed and result.severity == WARN
    assert result.description == "nut, crop-paste: 0.4000 < 0.5000"
    assert result.metadata["looked_at"].value == 2
    assert not _segmented(sample, "crop-paste").passed and _segmented(sample, "mix").passed
    assert _segmented(sample, "crop-paste", nut__crop_paste=0.5).passed
    assert _segmented(sample, "crop-paste", nut__crop_paste=None).metadata["looked_at"].value == 0
