"""Sheets of the report: every row of the score maps belongs to one arm, also with few test images."""

import json

import numpy as np

from defect_core.data.records import Record, load_image, save_png, write_records
from defect_core.project.paths import Project
from defect_core.report.galleries import CELL, real_sheets, score_map_sheet
from defect_core.report.sheets import GAP

PARAMS = "products: [nut]\nsources: {nut: {path: x, layout: mvtec}}\ngenerators: [crop-paste]\narms: [real_only, mix]\n"


def test_each_row_of_the_score_maps_belongs_to_one_arm(tmp_path):
    tmp_path.joinpath("params.yaml").write_text(PARAMS)
    project = Project(tmp_path)
    raw = project.path("data/raw/nut")
    save_png(np.full((16, 16, 3), 90, np.uint8), raw / "good/0.png")
    records = [Record("nut", "good", "good/0.png", None, "train", "g", 16, 16)]
    for number in (0, 1):
        save_png(np.full((16, 16, 3), 120, np.uint8), raw / f"dent/{number}.png")
        save_png(np.eye(16, dtype=bool), raw / f"masks/{number}.png")
        record = Record("nut", "dent", f"dent/{number}.png", f"masks/{number}.png", "test", str(number), 16, 16)
        records.append(record)
    write_records(records, project.path("data/split/nut.parquet"))
    for arm, grey in (("real_only", 0), ("mix", 255)):
        folder = project.path(f"data/segment/nut/{arm}")
        for number in (0, 1):
            save_png(np.full((16, 16), grey, np.uint8), folder / f"maps/{number}.png")
        maps = {f"maps/{number}.png": f"dent/{number}.png" for number in (0, 1)}
        (folder / "maps.json").write_text(json.dumps(maps))
    shown = score_map_sheet(project, "nut", tmp_path / "report")
    assert shown == {"file": "images/nut-maps.png", "caption": "rows: test image with its true mask · real_only · mix"}
    pitch = CELL + GAP
    rows = [load_image(tmp_path / "report" / shown["file"])[i * pitch :][:CELL, : 2 * pitch - GAP] for i in range(3)]
    black, white = (
        (row[:, np.r_[:CELL, pitch : pitch + CELL]] == grey).all() for row, grey in zip(rows[1:], (0, 255), strict=True)
    )
    assert black and white
    assert [sheet["caption"] for sheet in real_sheets(project, "nut", tmp_path / "report")] == ["real: normal"]
