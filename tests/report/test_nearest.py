"""Nearest training images and mask areas of the report, from handwritten files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, save_png, write_records
from defect_core.project.paths import Project
from defect_core.report.nearest import MaskAreas, mask_areas, nearest_pairs

ROW = ManifestRow(
    sample_id="crack-0", product="nut", defect="crack", image="images/0.png", mask="masks/0.png", generator="cutpaste",
    seed=1, source_image=None, source_mask=None, prompt=None, strength=None, mask_area=5, quality=1.0, accepted=True,
    reject_reason=None, model_digest=None, image_sha256=None,
)  # fmt: skip


@pytest.fixture
def project(tmp_path):
    tmp_path.joinpath("params.yaml").write_text("products: [nut]\nsources: {nut: {layout: demo}}\n")
    project = Project(tmp_path)
    mask = np.zeros((10, 10), bool)
    mask[:2, :5] = True
    for number, grey in enumerate((40, 80)):
        save_png(np.full((10, 10, 3), grey, np.uint8), project.path(f"data/raw/nut/crack/{number}.png"))
        save_png(mask if number else mask.T, project.path(f"data/raw/nut/masks/{number}.png"))
    records = [Record("nut", "crack", f"crack/{n}.png", f"masks/{n}.png", "train", str(n), 10, 10) for n in (0, 1)]
    records.append(Record("nut", "stain", "crack/0.png", "masks/0.png", "test", "0", 10, 10))
    write_records(records, project.path("data/split/nut.parquet"))
    folder = project.path("data/synthetic/nut/cutpaste")
    rows = [ROW, replace(ROW, sample_id="crack-1", image="images/1.png", mask_area=20)]
    rows.append(replace(ROW, sample_id="crack-2", image=None, mask=None, mask_area=99, accepted=False))
    write_manifest(rows, folder / "manifest.parquet")
    for number in (0, 1):
        save_png(np.full((10, 10, 3), 100 + number, np.uint8), folder / f"images/{number}.png")
    return project


def test_mask_areas_of_accepted_pairs_and_of_training_images(project):
    (row,) = mask_areas(project, "nut", "cutpaste")
    assert row == MaskAreas("crack", synthetic=(0.05, 0.125, 0.2), real=(0.1, 0.1, 0.1))


def test_nearest_pairs_are_those_in_the_scores(project):
    path = project.path("metrics/score/nut/cutpaste.json")
    path.parent.mkdir(parents=True)
    pairs = [{"generated": f"images/{n}.png", "real": f"crack/{1 - n}.png", "ratio": 0.5 + n} for n in (0, 1)]
    path.write_text(json.dumps({"nearest": {"crack": {"features": [*pairs, pairs[0]], "pixels": []}}}))
    nearest = nearest_pairs(project, "nut", "cutpaste")
    assert [image[0, 0, 0] for image in nearest.generated] == [100, 101]
    assert [image[0, 0, 0] for image in nearest.real] == [80, 40]
    assert nearest.ratios == [0.5, 1.5]
    path.write_text(json.dumps({"nearest": {}}))
    assert nearest_pairs(project, "nut", "cutpaste").generated == []
