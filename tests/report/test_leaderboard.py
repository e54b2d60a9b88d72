"""Leaderboard rows of all downstream models, the frame, and the page: every undefined score has its reason."""

import json

import numpy as np
import pytest

from defect_core.errors import InputError
from defect_core.project.params import Params
from defect_core.project.paths import Project
from defect_core.report import page
from defect_core.report.leaderboard import (
    LEADERBOARD_FILE,
    MEAN_OVER_PRODUCTS,
    leaderboard_frame,
    load_leaderboard,
    make_leaderboard,
    read_leaderboard,
)
from defect_core.report.page import _sweep_chart, _table
from defect_core.report.plots import arm_styles
from defect_core.report.table import CLASSIFY_COLUMNS, SEGMENT_COLUMNS, print_leaderboard

ARMS = ("real_only", "crop-paste", "crop-paste-at-25", "mix")
AP = {"real_only": 0.4, "crop-paste": 0.5, "crop-paste-at-25": 0.45, "mix": None}


def _entry(arm, value, name="pixel_ap", **more):
    part = {
        "mean": {name: value, "image_auroc": 0.9},
        "std": {name: 0.03 if value is not None else None, "image_auroc": 0.01},
        "interval": {name: [0.3, 0.6] if value is not None else None},
        "reasons": {} if value is not None else {name: "no positives: no defect pixel"},
    }
    share = {"real_only": 0.0, "crop-paste-at-25": 0.25}.get(arm, 0.5)
    protocol = {"seeds": 2, "synthetic_fraction": share, "synthetic": 9}
    return {"arm": arm, **part, "best_on_validation": part, "protocol": protocol, **more}


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.__dict__["params"] = Params(
        products=("p",), generators=("crop-paste",), arms=ARMS, segment_unified={}, classify={}
    )
    for arm in ARMS:
        confusion = [[3, 1], [0, 4]]
        answers = {"per_seed": [{"confusion": confusion}, {"confusion": confusion}], "classes": ["dent", "hole"]}
        classified = _entry(arm, AP[arm], "accuracy", **answers)
        classified["mean"]["recall_dent"] = 0.75
        classified["protocol"]["defect_images"] = {"dent": 4, "hole": 4}
        unified = _entry(arm, AP[arm])
        unified["products"] = {"p": _entry(arm, AP[arm], protocol={"defect_images": 3})}
        unified["best_on_validation"] = {**_entry(arm, 0.6), "products": {"p": _entry(arm, 0.7)}}
        for path, content in (
            (f"segment/p/{arm}", _entry(arm, AP[arm])),
            (f"segment_unified/{arm}", unified),
            (f"classify/p/{arm}", classified),
        ):
            file = tmp_path / f"metrics/{path}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))
    scored = {
        "scores": {"pooled": {"kernel_lite0": 0.1}},
        "missing": {"frechet_lite0": "fewer than two images"},
        "acceptance": {"acceptance_rate": 1.0},
    }
    (tmp_path / "metrics/score/p").mkdir(parents=True)
    (tmp_path / "metrics/score/p/crop-paste.json").write_text(json.dumps(scored))
    return project


def test_rows_of_three_downstream_models_have_gain_spread_and_fraction(project):
    leaderboard = make_leaderboard(project)
    rows = {row["arm"]: row for row in leaderboard["rows"]}
    assert [row["arm"] for row in leaderboard["rows"]] == ["crop-paste", "crop-paste-at-25", "real_only", "mix"]
    assert rows["crop-paste-at-25"]["gain"] == pytest.approx(0.05) and rows["crop-paste-at-25"]["share"] == 0.25
    assert rows["crop-paste"]["gain_spread"] == pytest.approx(np.hypot(0.03, 0.03), abs=1e-6)
    assert rows["mix"]["gain"] is None and rows["mix"]["reasons"]["gain"] == "no positives: no defect pixel"
    assert rows["real_only"]["gain"] is None and "gain" not in rows["real_only"]["reasons"]
    assert rows["crop-paste"]["scores"] and rows["crop-paste-at-25"]["scores"] is None
    assert [row["product"] for row in leaderboard["unified"]] == [MEAN_OVER_PRODUCTS] * 4 + ["p"] * 4
    assert {row["best_on_validation"]["mean"]["pixel_ap"] for row in leaderboard["unified"][4:]} == {0.7}
    assert leaderboard["classify"][0]["confusion"] == [[6, 2], [0, 8]]
    json.dumps(leaderboard, allow_nan=False)


def test_missing_sections_have_no_rows_and_a_missing_baseline_has_a_reason(project):
    params = project.params.model_copy(update={"segment_unified": None, "classify": None, "arms": ("crop-paste",)})
    project.__dict__["params"] = params
    leaderboard = make_leaderboard(project)
    assert leaderboard["unified"] == leaderboard["classify"] == []
    assert leaderboard["rows"][0]["reasons"]["gain"] == "no arm real_only"


def test_terminal_shows_every_model_and_a_reason_for_each_undefined_score(project, capsys):
    print_leaderboard(make_leaderboard(project))
    shown = capsys.readouterr().out
    for title in ("p: segmenter on real", f"{MEAN_OVER_PRODUCTS}: one segmenter", "p: classifier of defect types"):
        assert title in shown
    assert "mix: undefined: no positives: no defect pixel" in shown
    assert "crop-paste: undefined: fewer than two images" in shown
    assert "50.0 ± 3.0" in shown and "best on val." in shown
    assert "Undefined: 0 pairs" in shown or "Undefined: 1 pairs" in shown


def test_tables_of_the_page_have_std_interval_reason_and_recalls(project):
    leaderboard = make_leaderboard(project)
    table = _table(leaderboard["rows"], SEGMENT_COLUMNS)
    best = table["rows"][0]
    assert best["cells"][0] == ("50.0 ± 3.0", "30.0–60.0") and best["best"] == ("50.0 ± 3.0", "30.0–60.0")
    assert best["frechet"] == "undefined: fewer than two images" and best["fraction"] == "50 %"
    assert table["rows"][-1]["cells"][0][0] == "undefined: no positives: no defect pixel"
    classified = _table(leaderboard["classify"], CLASSIFY_COLUMNS)
    assert classified["labels"] == ["accuracy", "balanced accuracy", "recall of dent"]
    assert len(classified["confusions"]) == 4


def test_sweep_chart_starts_at_no_gain_and_orders_the_fractions(project):
    rows = make_leaderboard(project)["rows"]
    styles = arm_styles([project.params.arm(name) for name in ARMS])
    svg = _sweep_chart(rows, styles)
    assert "crop-paste: +0.0 at 0 %, +5.0 at 25 %, +10.0 at 50 %" in svg
    assert "mix" not in svg
    assert _sweep_chart([row for row in rows if row["arm"] != "crop-paste-at-25"], styles) == ""


def test_frame_has_one_row_per_model_product_and_arm(project):
    leaderboard = make_leaderboard(project)
    frame = leaderboard_frame(leaderboard)
    assert frame.groupby("model", sort=False).size().to_dict() == {"segment": 4, "segment_unified": 8, "classify": 4}
    row = frame.set_index(["model", "product", "arm"]).loc[("segment", "p", "crop-paste")]
    assert (row["pixel_ap"], row["pixel_ap_std"], row["pixel_ap_low"], row["pixel_ap_high"]) == (0.5, 0.03, 0.3, 0.6)
    assert row["gain"] == pytest.approx(0.1) and row["set_kernel_lite0"] == 0.1 and row["acceptance_rate"] == 1
    assert (row["seeds"], row["synthetic_pairs"]) == (2, 9)
    undefined = frame[(frame["model"] == "segment") & (frame["arm"] == "mix")]
    assert undefined[["pixel_ap", "pixel_ap_low", "gain"]].isna().all(axis=None)


def test_leaderboard_is_read_as_json_or_as_a_frame(project):
    with pytest.raises(InputError, match=r"leaderboard\.json is missing"):
        load_leaderboard(project)
    leaderboard = make_leaderboard(project)
    project.path(LEADERBOARD_FILE).write_text(json.dumps(leaderboard))
    assert load_leaderboard(project) == leaderboard
    assert read_leaderboard(project).equals(leaderboard_frame(leaderboard))


def test_page_shows_all_models_the_sweep_and_why_no_score_predicts(project, tmp_path, monkeypatch):
    leaderboard = make_leaderboard(project)
    monkeypatch.setattr(page, "real_sheets", lambda *_: [])
    monkeypatch.setattr(page, "score_map_sheet", lambda *_: None)
    monkeypatch.setattr(page, "_training_curves", lambda *_: {})
    monkeypatch.setattr(page, "_generator_section", lambda *_: {"summary": {"rejected": {}}})
    page.write_report(project, leaderboard, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "One segmenter for all products" in text and MEAN_OVER_PRODUCTS in text
    assert "Classifier of defect types" in text and "by chance: 50.0 %" in text and "recall of dent" in text
    assert (
        "undefined: no positives: no defect pixel" in text
        and "gain in pixel AP, %, over the synthetic fraction" in text
    )
    assert "Undefined: " in text and "at least 6" in text
    assert "nan" not in text.lower().replace("tenant", "") and "None" not in text


def test_page_shows_a_prediction_with_its_interval(project, tmp_path, monkeypatch):
    for name in ("real_sheets", "_training_curves"):
        monkeypatch.setattr(page, name, lambda *_: {})
    monkeypatch.setattr(page, "score_map_sheet", lambda *_: None)
    monkeypatch.setattr(page, "_generator_section", lambda *_: {"summary": {"rejected": {}}})
    leaderboard = make_leaderboard(project)
    leaderboard["prediction"] = {
        "fid": {"pairs": 8, "rho": -0.7, "interval": [-0.95, 0.1], "p": 0.04, "reason": ""},
        "kid": {"pairs": 2, "rho": None, "interval": None, "p": None, "reason": "2 pairs; expected at least 6"},
    }
    page.write_report(project, leaderboard, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "-0.95 to +0.10" in text and "0.040" in text and "2 pairs; expected at least 6" in text
