"""The mixed sheet has all real and generated normal images, and names the positions of the generated ones."""

import json

import numpy as np

from defect_core.data.records import Record, save_png, write_records
from defect_core.project.paths import Project
from defect_core.report.adapted import mixed_sheet
from defect_core.report.page import _adapted_section

PARAMS = "products: [plate]\nsources: {plate: {path: x, layout: mvtec}}\ngenerators: [crop-paste]\narms: [real_only]\n"


def _project(root, adapt="adapt: {}\n"):
    root.joinpath("params.yaml").write_text(PARAMS + adapt)
    records = []
    for index in range(30):
        name = f"good/{index:02d}.png"
        save_png(np.full((48, 48, 3), 10 + index, np.uint8), root / "data/raw/plate" / name)
        split = "train" if index < 20 else "test"
        records.append(Record("plate", "good", name, None, split, f"{index}", 48, 48))
    records.append(Record("plate", "dent", "dent/0.png", "dent/0_mask.png", "test", "d", 48, 48))
    (root / "data/split").mkdir(parents=True)
    write_records(records, root / "data/split/plate.parquet")
    for index in range(20):
        save_png(np.full((32, 32, 3), 200 + index, np.uint8), root / f"data/backbone/plate/samples/{index:02d}.png")
    curve = [{"step": 0, "loss": None, "held_out": 0.5}, {"step": 4, "loss": 0.4, "held_out": 0.3}]
    (root / "data/backbone/plate/adaptation.json").write_text(json.dumps(curve))
    return Project(root)


def test_sheet_mixes_twenty_real_with_all_generated_images(tmp_path):
    sheet = mixed_sheet(_project(tmp_path), "plate")
    shades = [int(image[0, 0, 0]) for image in sheet.images]
    assert all(image.shape == (32, 32, 3) for image in sheet.images)
    assert sorted(shade for shade in shades if shade >= 200) == list(range(200, 220))
    assert len({shade for shade in shades if shade < 200}) == 20
    assert sheet.generated == [place for place, shade in enumerate(shades, 1) if shade >= 200]
    assert sheet.generated != list(range(21, 41))  # in random order
    assert sheet.held_out == [(0, 0.5), (4, 0.3)]


def test_report_has_the_sheet_only_when_the_backbone_is_adapted(tmp_path):
    project = _project(tmp_path)
    section = _adapted_section(project, "plate", tmp_path / "report")
    assert (tmp_path / "report" / section["file"]).is_file() and "20 real" in section["caption"]
    (tmp_path / "params.yaml").write_text(PARAMS)
    assert _adapted_section(Project(tmp_path), "plate", tmp_path / "report") is None
