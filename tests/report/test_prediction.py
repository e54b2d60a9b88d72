"""Rank correlation of scores with the gain: agreement with scipy, and cases where it is undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from defect_core.report.prediction import predict_gain, rank_interval
from defect_core.report.table import format_interval, print_leaderboard


def _rows(scores, gains):
    return [{"scores": s, "gain": g} for s, g in zip(scores, gains, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_rho_equals_scipy_with_ties_and_p_is_close(seed):
    rng = np.random.default_rng(seed)
    values, gains = rng.integers(0, 6, 12).astype(float), rng.normal(size=12)
    entry = predict_gain(_rows([{"fid": v} for v in values], gains))["fid"]
    expected = spearmanr(values, gains)
    assert entry["rho"] == pytest.approx(expected.statistic, abs=1e-6) and entry["pairs"] == 12
    assert entry["p"] == pytest.approx(expected.pvalue, abs=0.05)


def test_rho_is_minus_one_when_the_score_falls_as_the_gain_rises():
    entry = predict_gain(_rows([{"fid": 9 - i} for i in range(7)], range(7)))["fid"]
    assert entry["rho"] == -1 and entry["p"] < 0.01


def test_rows_without_score_or_gain_do_not_count_and_few_pairs_have_a_reason():
    scores = [None, {"fid": 0, "kid": 2}, *({"fid": number, "kid": None} for number in range(1, 6))]
    rows = _rows([*scores, {"fid": 9}], [None, 0, 1, 2, 3, 5, 4, None])
    prediction = predict_gain(rows)
    assert prediction["fid"]["pairs"] == 6 and prediction["fid"]["rho"] == pytest.approx(33 / 35)
    assert prediction["kid"]["rho"] is prediction["kid"]["interval"] is None
    assert "1 pairs" in prediction["kid"]["reason"] and "at least 6" in prediction["kid"]["reason"]
    assert predict_gain(rows[:6])["fid"]["rho"] is None, "five pairs are too few"
    flat = predict_gain(_rows([{"fid": 1}] * 6, range(6)))["fid"]
    assert flat["rho"] is None and "are equal" in flat["reason"]
    assert predict_gain([]) == {}


def test_table_shows_the_interval_and_the_prediction(capsys):
    score = {"pixel_ap": 0.5, "pixel_f1_max": 0.5, "pro": None, "iou": 0.1, "pixel_auroc": 0.9, "image_auroc": 1.0}
    row = {"product": "p", "arm": "a", "mean": score, "std": {}, "gain": 0.1, "scores": None, "protocol": {"seeds": 1}}
    row["interval"] = {"pixel_ap": [0.4123, 0.6], "pro": None}
    assert format_interval(row, "pixel_ap") == "41.2–60.0"
    assert format_interval(row, "pro") == "" == format_interval({}, "pro")
    row["reasons"] = {"pro": "no defect pixel"}
    entry = {"rho": -0.5, "interval": [-0.9, 0.4], "p": 0.2, "pairs": 6, "reason": ""}
    print_leaderboard({"rows": [row], "prediction": {"fid": entry}})
    shown = capsys.readouterr().out
    assert "41.2–60.0" in shown and "-0.50" in shown and "-0.90 to +0.40" in shown
    assert "which score predicts" in shown and "a: undefined: no defect pixel" in shown
    few = {"rho": None, "interval": None, "p": None, "pairs": 2, "reason": "2 pairs; expected at least 6"}
    print_leaderboard({"rows": [row], "prediction": {"fid": few}})
    assert "Undefined: 2 pairs; expected at least 6." in capsys.readouterr().out


@given(values=st.lists(st.integers(0, 20), min_size=6, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_interval_contains_rho_and_is_mirrored_for_the_negated_score(values, seed):
    gains = np.random.default_rng(seed).normal(size=len(values))
    entry, other = (predict_gain(_rows([{"fid": sign * v} for v in values], gains))["fid"] for sign in (1.0, -1.0))
    if entry["rho"] is None:
        assert len(set(values)) == 1
        return
    low, high = entry["interval"]
    assert -1 <= low <= entry["rho"] <= high <= 1 and high - low > 0.05
    assert other["interval"] == [-high, -low]


def test_95_percent_of_the_intervals_contain_the_true_correlation():
    """Normal pairs with correlation 0.6 have Spearman's 6 / pi * asin(0.3) = 0.582."""
    # Worked out: z = 0.6931, standard error sqrt((1 + 0.18) / 12) = 0.3136
    assert rank_interval(0.6, 15) == pytest.approx([0.0784, 0.8637], abs=1e-4)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        a, b = rng.normal(size=(2, 15))
        rho = spearmanr(a, 0.6 * a + 0.8 * b).statistic
        low, high = rank_interval(rho, 15)
        covered += low <= 0.582 <= high
    assert 366 <= covered <= 394
