"""The metadata of the UI: pictures of bounded size, plots, tables and numbers."""

import base64
import io
import json

import numpy as np
from PIL import Image

from defect_core.data.records import Record, save_png, write_records
from defect_core.graph import local
from defect_core.graph.instances import find_instance
from defect_core.project.paths import Project
from pipelines.metadata import numeric_leaves, read_cost_metadata
from pipelines.pictures import markdown_table, show_curve, show_picture
from pipelines.stage_views import STAGE_VIEWS

PARAMS = "products: [nut]\nsources: {nut: {layout: demo}}\ngenerators: [crop-paste]\narms: [real_only, crop-paste]\n"


def _read_metadata(folder, name, params=PARAMS, **axes):
    folder.joinpath("params.yaml").write_text(params)
    project = Project(folder)
    return STAGE_VIEWS[name].read_metadata(project, find_instance(name, project.params, **axes))


def _decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text.partition("base64,")[2].rstrip(")"))))


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_picture_of_noise_is_below_100_kilobytes():
    noise = np.random.default_rng(0).integers(0, 256, (294, 782, 3), dtype=np.uint8)
    text = show_picture(noise, "noise").value
    assert len(text) < 100_000
    assert _decoded(text).size == (782, 294)


def test_numeric_leaves_are_numbers_at_any_depth():
    content = {"a": {"b": 1, "c": {"d": 0.5}}, "list": [1, 2], "text": "x", "yes": True, "none": None}
    assert numeric_leaves(content) == {"a.b": 1, "a.c.d": 0.5}


def test_a_table_escapes_its_cells():
    table = markdown_table(("defect", "n"), [("a|b\nc", 1.23456)])
    assert table.splitlines() == ["| defect | n |", "| --- | --- |", "| a\\|b c | 1.235 |"]


def test_a_curve_falls_where_its_values_fall():
    text = show_curve([(1, 3.0), (2, 2.0), (3, 1.0)], "loss").value
    assert text.startswith("![loss over steps](data:image/png;base64,") and len(text) < 100_000
    pixels = np.asarray(_decoded(text).convert("RGB"), int)
    rows, columns = (pixels[:, :, 2] - pixels[:, :, 0] > 100).nonzero()  # the blue line
    assert rows[columns == columns.min()].mean() < rows[columns == columns.max()].mean()
    assert _decoded(show_curve([(1, 1.0)], "loss").value).size == _decoded(text).size


def test_a_trained_generator_shows_its_loss(tmp_path):
    path = tmp_path / "data/generator/nut/crop-paste/training.json"
    axes = {"product": "nut", "generator": "crop-paste"}
    _write(path, {"loss": [0.9, 0.4]})
    shown = _read_metadata(tmp_path, "finetune", **axes)
    assert (shown["steps"].value, shown["final_loss"].value) == (2, 0.4)
    assert "data:image/png" in shown["loss"].value
    _write(path, {"loss": []})
    assert set(_read_metadata(tmp_path, "finetune", **axes)) == {"training"}


def test_scores_are_single_numbers_and_a_table(tmp_path):
    _write(
        tmp_path / "metrics/score/nut/crop-paste.json",
        {
            "scores": {"pooled": {"frechet_lite0": 12.5, "fid": None}, "crack": {"frechet_lite0": 20.0}},
            "product": "nut",
        },
    )
    shown = _read_metadata(tmp_path, "score", product="nut", generator="crop-paste")
    assert {name: value.value for name, value in shown.items() if name != "table"} == {"frechet_lite0": 12.5}
    assert "| scores.crack.frechet_lite0 | 20 |" in shown["table"].value
    _write(
        tmp_path / "metrics/segment/nut/real_only.json",
        {"mean": {"pixel_ap": 0.25}, "per_seed": [{"pixel_ap": 1}]},
    )
    shown = _read_metadata(tmp_path, "segment", product="nut", arm="real_only")
    assert shown["pixel_ap"].value == 0.25 and "per_seed" not in shown["table"].value


def test_the_leaderboard_names_the_best_arm(tmp_path):
    def row(arm, value, gain):
        return {
            "product": "nut",
            "arm": arm,
            "mean": {"pixel_ap": value},
            "std": {"pixel_ap": 0.01},
            "gain": gain,
        }

    _write(
        tmp_path / "metrics/leaderboard.json",
        {"rows": [row("crop-paste", 0.5, 0.1), row("real_only", 0.4, None)]},
    )
    shown = _read_metadata(tmp_path, "leaderboard")
    assert shown["best_arm_nut"].value == "crop-paste"
    assert "| nut | crop-paste | +10.0 | 50.0 ± 1.0 |" in shown["leaderboard"].value


def test_a_segmenter_shows_its_loss_and_its_score_maps(tmp_path):
    _write(tmp_path / "metrics/segment/nut/real_only.json", {"mean": {"pixel_ap": 0.25}})
    folder = tmp_path / "data/segment/nut/real_only"
    _write(folder / "curves.json", [{"seed": 0, "points": [{"step": 1, "loss": 2.0}, {"step": 40, "loss": 1.0}]}])
    axes = {"product": "nut", "arm": "real_only"}
    shown = _read_metadata(tmp_path, "segment", **axes)
    assert "data:image/png" in shown["loss"].value and "score_maps" not in shown
    _write(folder / "maps.json", {"maps/000.png": "crack/0.png"})
    pixels, mask = np.full((20, 20, 3), 90, np.uint8), np.eye(20, dtype=bool)
    for name, array in (("crack/0.png", pixels), ("masks/0.png", mask)):
        save_png(array, tmp_path / "data/raw/nut" / name)
    save_png(pixels[:, :, 0], folder / "maps/000.png")
    record = Record("nut", "crack", "crack/0.png", "masks/0.png", "test", "0", 20, 20)
    write_records([record], tmp_path / "data/split/nut.parquet")
    sheet = _decoded(_read_metadata(tmp_path, "segment", **axes)["score_maps"].value)
    assert sheet.size == (96, 194)  # The image is above its map.
    assert _read_metadata(tmp_path, "segment", **axes)["pixel_ap"].value == 0.25


def test_an_adapted_backbone_shows_its_loss_curves(tmp_path):
    points = [{"step": 0, "loss": None, "held_out": 0.5}, {"step": 100, "loss": 0.4, "held_out": 0.3}]
    points.append({"step": 200, "loss": 0.2, "held_out": 0.35})
    _write(tmp_path / "data/backbone/nut/adaptation.json", points)
    shown = _read_metadata(tmp_path, "adapt", PARAMS + "adapt: {}\n", product="nut")
    assert (shown["best_step"].value, shown["held_out_loss"].value, shown["initial_held_out_loss"].value) == (
        100, 0.3, 0.5,
    )  # fmt: skip
    assert {"loss_curve", "held_out_curve"} <= set(shown)


def test_the_cost_is_that_of_the_last_run_on_this_machine(tmp_path, monkeypatch):
    tmp_path.joinpath("params.yaml").write_text(PARAMS)
    project = Project(tmp_path)
    instance = find_instance("ingest", project.params, product="nut")
    assert read_cost_metadata(project, instance) == {}
    monkeypatch.setattr(local, "run_stage", lambda *_: 12.34)
    local.run_one(project, "ingest", product="nut")
    cost = read_cost_metadata(project, instance)
    assert (cost["work_seconds"].value, cost["device"].value) == (12.3, "cpu")
    tracked = [path for path in tmp_path.rglob("*") if path.is_file() and ".defectory" not in path.parts]
    assert [path.name for path in tracked] == ["params.yaml"]
