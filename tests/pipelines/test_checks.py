"""Asset checks of synthetic sets and segmenters, on files written by hand."""

import json
from dataclasses import replace

import dagster as dg
import numpy as np
import pytest

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import save_png
from defect_core.project import Project
from defect_core.stages import find_instance
from pipelines.checks import check_results, check_specs

ROW = ManifestRow(
    sample_id="crack-0", product="nut", defect="crack", image="images/0.png", mask="masks/0.png",
    generator="crop-paste", seed=1, source_image=None, source_mask=None, prompt=None, strength=None, mask_area=16,
    quality=1.0, accepted=True, reject_reason=None, model_digest=None, image_sha256=None,
)  # fmt: skip
MASK = np.zeros((32, 32), bool)
MASK[4:8, 4:8] = True


@pytest.fixture
def sample(tmp_path):
    tmp_path.joinpath("params.yaml").write_text(
        "products: [nut, bolt]\nsources: {nut: {layout: demo}, bolt: {layout: demo}}\n"
        "generators: [crop-paste]\narms: [real_only, crop-paste, mix]\nsynthesize: {per_defect: 1}\n"
    )
    return Project(tmp_path)


def _synthesised(project, rows, mask=MASK, image_size=(32, 32)):
    """Write a set of one kept pair and the given rows, and check it: {name: result}."""
    folder = project.path("data/synthetic/nut/crop-paste")
    write_manifest(rows, folder / "manifest.parquet")
    save_png(np.zeros((*image_size, 3), np.uint8), folder / "images/0.png")
    save_png(mask, folder / "masks/0.png")
    instance = find_instance("synthesize", project.params, product="nut", generator="crop-paste")
    results = check_results(project, instance)
    assert [result.check_name for result in results] == [spec.name for spec in check_specs(instance.stage)]
    return {result.check_name: result for result in results}


def test_good_pairs_pass(sample):
    rejected = replace(ROW, sample_id="crack-1", accepted=False, image=None, mask=None, reject_reason="too faint")
    assert all(result.passed for result in _synthesised(sample, [ROW, rejected]).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": np.zeros((32, 32), bool)}, "crack-0: empty mask"),
        ({"image_size": (32, 40)}, "crack-0: image 40x32, mask 32x32"),
        ({"rows": [replace(ROW, image="images/gone.png")]}, "gone.png"),
        ({"rows": [replace(ROW, mask=None)]}, "crack-0"),
    ],
)
def test_pairs_that_do_not_fit_fail(sample, changes, said):
    result = _synthesised(sample, **{"rows": [ROW], **changes})["pairs_aligned"]
    assert not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
    assert said in result.description


def test_a_change_outside_the_mask_fails_a_method_that_promised_none(sample):
    result = _synthesised(sample, [replace(ROW, change_outside=0.5)])["background_kept"]
    assert not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
    assert result.description == "crack-0: changed by 0.5 grey levels outside its mask"
    rejected = replace(ROW, change_outside=0.5, accepted=False, reject_reason="x", image=None, mask=None)
    assert _synthesised(sample, [rejected, replace(ROW, change_outside=0.0)])["background_kept"].passed


def test_too_few_accepted_pairs_warn_by_defect(sample):
    stain = replace(ROW, sample_id="stain-0", defect="stain", accepted=False, reject_reason="too faint")
    result = _synthesised(sample, [ROW, stain])["enough_accepted"]
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
    assert result.description == "stain: 0 of 1"
    assert not _synthesised(sample, [])["enough_accepted"].passed


def _segmented(project, arm, **values):
    for name, value in values.items():
        path = project.path(f"metrics/segment/{name.replace('__', '/').replace('_paste', '-paste')}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mean": {"pixel_ap": value}}))
    (result,) = check_results(project, find_instance("segment", project.params, product="nut", arm=arm))
    return result


def test_an_arm_below_the_baseline_warns_whichever_was_measured_last(sample):
    result = _segmented(sample, "crop-paste", nut__crop_paste=0.4)
    assert result.passed and result.metadata["arms_compared"].value == 0
    result = _segmented(sample, "real_only", nut__real_only=0.5, nut__mix=0.6, bolt__real_only=0.9)
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
    assert result.description == "nut, crop-paste: 0.4000 < 0.5000"
    assert result.metadata["arms_compared"].value == 2
    assert _segmented(sample, "crop-paste", nut__crop_paste=0.5).passed
    assert _segmented(sample, "crop-paste", nut__crop_paste=None).metadata["arms_compared"].value == 1
