"""Which score predicts the gain: against scipy, and where nothing can be said."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from defect_core.report.prediction import predict_gain
from defect_core.report.table import interval, print_leaderboard


def _rows(scores, gains):
    return [{"scores": s, "gain": g} for s, g in zip(scores, gains, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_rho_equals_scipy_also_with_ties_and_p_is_close(seed):
    rng = np.random.default_rng(seed)
    values, gains = rng.integers(0, 6, 12).astype(float), rng.normal(size=12)
    entry = predict_gain(_rows([{"fid": v} for v in values], gains))["fid"]
    expected = spearmanr(values, gains)
    assert entry["rho"] == pytest.approx(expected.statistic, abs=1e-6) and entry["pairs"] == 12
    assert entry["p"] == pytest.approx(expected.pvalue, abs=0.05)


def test_a_score_that_falls_as_the_gain_rises_predicts_at_minus_one():
    entry = predict_gain(_rows([{"fid": 9 - i} for i in range(7)], range(7)))["fid"]
    assert entry["rho"] == -1 and entry["p"] < 0.01


def test_rows_without_scores_or_gain_are_left_out_and_too_few_have_a_reason():
    rows = _rows([None, {"fid": 1, "kid": 2}, {"fid": 2}, {"fid": 3}, {"fid": 4}, {"fid": 5}], [None, 1, 2, 3, 5, 4])
    found = predict_gain(rows)
    assert found["fid"]["pairs"] == 5 and found["fid"]["rho"] == pytest.approx(0.9)
    assert found["kid"]["rho"] is None and "1 pairs" in found["kid"]["reason"]
    flat = predict_gain(_rows([{"fid": 1}] * 5, range(5)))["fid"]
    assert flat["rho"] is None and "the same" in flat["reason"]
    assert predict_gain([]) == {}


def test_the_table_shows_the_interval_and_the_prediction(capsys):
    score = {"pixel_ap": 0.5, "pixel_f1_max": 0.5, "pro": None, "iou": 0.1, "pixel_auroc": 0.9, "image_auroc": 1.0}
    row = {"product": "p", "arm": "a", "mean": score, "std": {}, "gain": 0.1, "scores": None, "protocol": {"seeds": 1}}
    row["interval"] = {"pixel_ap": [0.4123, 0.6], "pro": None}
    assert interval(row, "pixel_ap") == "41.2–60.0" and interval(row, "pro") == "" == interval({}, "pro")
    print_leaderboard({"rows": [row], "prediction": {"fid": {"rho": -0.5, "p": 0.2, "pairs": 6, "reason": ""}}})
    shown = capsys.readouterr().out
    assert "41.2–60.0" in shown and "-0.50" in shown and "undefined" in shown
    assert "which score predicts" in shown
