"""The inspector's figures in the frame, on the terminal and in the report, with and without thresholds."""

import pytest

from defect_core.report.inspection import format_escapes, inspection_columns, inspection_section
from defect_core.report.leaderboard import leaderboard_frame
from defect_core.report.table import print_leaderboard


def _rate(rate, count=20):
    return {"rate": rate, "interval": None if rate is None else [rate / 2, rate + 0.1], "count": count, "per_seed": []}


def _target(support="extrapolated", note="1 % overkill needs 99 held-out normal images; found 60", small=(30, 41)):
    bins = [_rate(0.5), _rate(0.75), _rate(None, 0)]
    return {
        "target": 0.01,
        "support": support,
        "note": note,
        "threshold": [0.4],
        "escape": _rate(0.25),
        "overkill": _rate(0.05),
        "escape_by_defect": {"cut": _rate(0.125), "dent": _rate(0.375)},
        "region_recall": _rate(0.8),
        "false_regions_per_image": 0.125,
        "smallest_found_px": {"all": list(small), "cut": [12], "dent": [None]},
        "largest_missed_px": {"all": [None, None]},
        "recall_by_size": {"edges": [20.0, 55.4], "bins": bins},
        "recall_by_contrast": {"reason": "needs at least 3 real training regions for terciles"},
    }


def _row(arm, inspection):
    scores = {"pixel_ap": 0.5, "pixel_f1_max": 0.5, "image_auroc": 0.9}
    return {
        "product": "p",
        "arm": arm,
        "base": arm,
        "share": 0.0,
        "mean": scores,
        "std": {},
        "interval": {},
        "reasons": {},
        "best_on_validation": None,
        "gain": None,
        "gain_spread": None,
        "protocol": {"seeds": 1},
        "inspection": inspection,
    }


def _measured():
    few = {"target": 0.001, "support": "unavailable", "note": "0.1 % overkill needs 999"}
    protocol = {"folds": 2, "fold_steps": 75, "held_out_normal": 60, "hit_rule": "a hit", "terciles": "of them"}
    return {"protocol": protocol, "targets": {"0.001": few, "0.01": _target()}}


def test_the_frame_has_a_column_per_figure_and_target():
    frame = leaderboard_frame({"rows": [_row("mix", _measured()), _row("real_only", {"reason": "folds is 0"})]})
    row = frame.iloc[0]
    assert row["support_at_1"] == "extrapolated" and row["support_at_0.1"] == "unavailable"
    assert (row["escape_at_1"], row["escape_at_1_low"], row["overkill_at_1_high"]) == (0.25, 0.125, pytest.approx(0.15))
    assert row["false_regions_at_1"] == 0.125 and frame["escape_at_0.1"].isna().all()
    assert frame["escape_at_1"].isna().tolist() == [False, True]
    assert inspection_columns(None) == {}


def test_the_terminal_marks_extrapolations_and_gives_reasons(capsys):
    rows = [_row("mix", _measured()), _row("real_only", {"reason": "segment.folds is 0"})]
    print_leaderboard({"rows": rows})
    text = capsys.readouterr().out
    assert "escapes at 1 %" in text and "25.0†" in text
    assert "† 1 % overkill needs 99 held-out normal images; found 60" in text
    assert "real_only: undefined: segment.folds is 0" in text
    print_leaderboard({"rows": [{**row, "inspection": None} for row in rows]})
    assert "escapes" not in capsys.readouterr().out


def test_an_unavailable_threshold_is_undefined_with_its_note():
    inspection = {"targets": {"0.01": {"support": "unavailable", "note": "1 % overkill needs 99"}}}
    assert format_escapes(_row("mix", inspection)) == "undefined: 1 % overkill needs 99"


def test_the_section_has_targets_defects_and_regions():
    section = inspection_section([_row("mix", _measured()), _row("real_only", {"reason": "folds is 0"})])
    assert section["reasons"] == ["real_only: folds is 0"]
    assert section["notes"][0] == "0.1 %: unavailable. 0.1 % overkill needs 999"
    targets, defects, regions, terciles = section["tables"]
    assert targets["rows"] == [("mix", [("not available", "")] * 2 + [("25.0", "12.5–35.0"), ("5.0", "2.5–15.0")])]
    assert targets["labels"][1:3] == ["overkill at 0.1 %", "escapes at 1 %†"]
    assert defects["labels"][2:] == ["dent: escapes of 20", "smallest found, px"]
    assert [cell[0] for cell in defects["rows"][0][1]] == ["12.5", "12", "37.5", "none"]
    cells = dict(zip(regions["labels"], regions["rows"][0][1], strict=True))
    assert cells["smallest found, px"][0] == "30–41" and cells["largest missed, px"][0] == "none"
    cells = dict(zip(terciles["labels"], terciles["rows"][0][1], strict=True))
    assert cells["small to 20 px"][0] == "50.0" and cells["large above 55 px"][0] == "none"
    assert inspection_section([_row("mix", None)]) is None
