"""Intervals over test images: against scoring each draw outright, and against how scores really vary."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.metrics.bootstrap import _scores as scores_of_draws
from defect_core.metrics.bootstrap import bootstrap_intervals, image_tables
from defect_core.metrics.localisation import LocalisationScores


def _case(seed, count=24, side=32):
    rng = np.random.default_rng(seed)
    masks = ndimage.binary_dilation(rng.random((count, side, side)) > 0.998, np.ones((1, 3, 3)), 2)
    masks[::3] = False
    strength = rng.uniform(0.5, 3, (count, 1, 1))
    return (1 / (1 + np.exp(-(rng.normal(size=masks.shape) + strength * masks - 2)))).astype(np.float32), masks


def test_a_draw_scores_as_the_drawn_images_do():
    maps, masks = _case(0)
    weights = np.random.default_rng(1).multinomial(24, np.full(24, 1 / 24), 4).astype(float)
    found = scores_of_draws(image_tables(maps, masks, 3), weights, 0.3)
    for row, weight in enumerate(weights.astype(int)):
        exact = LocalisationScores(window=3)
        exact.update(np.repeat(maps, weight, 0), np.repeat(masks, weight, 0))
        for name, value in exact.compute().items():
            if name in found:
                assert found[name][row] == pytest.approx(value, abs=5e-3 if name.startswith(("pixel", "pro")) else 1e-9)


def test_the_interval_holds_the_score_repeats_and_narrows_with_more_images():
    widths = []
    for count in (12, 96):
        maps, masks = _case(2, count)
        intervals = bootstrap_intervals([image_tables(maps, masks, 3)], seed=0, draws=300)
        assert intervals == bootstrap_intervals([image_tables(maps, masks, 3)], seed=0, draws=300)
        exact = LocalisationScores(window=3)
        exact.update(maps, masks)
        value = exact.compute()
        assert all(low <= value[name] + 2e-3 and value[name] - 2e-3 <= high for name, (low, high) in intervals.items())
        widths.append(intervals["pixel_ap"][1] - intervals["pixel_ap"][0])
    assert widths[1] < 0.6 * widths[0]


def test_about_nine_in_ten_intervals_hold_the_score_of_a_large_test_set():
    maps, masks = _case(3, 400)
    truth = LocalisationScores(window=3)
    truth.update(maps, masks)
    truth = truth.compute()["pixel_ap"]
    rng, held = np.random.default_rng(0), 0
    for _ in range(40):
        chosen = rng.choice(400, 40, replace=False)
        low, high = bootstrap_intervals([image_tables(maps[chosen], masks[chosen], 3)], 0, 200)["pixel_ap"]
        held += low <= truth <= high
    assert 32 <= held <= 40


def test_scores_that_most_draws_do_not_define_have_no_interval():
    maps, masks = _case(4, 6)
    good = np.zeros_like(masks)
    assert set(bootstrap_intervals([image_tables(maps, good, 1)], 0, 50).values()) == {None}
    intervals = bootstrap_intervals([image_tables(maps, np.ones_like(masks), 1)], 0, 50)
    assert intervals["pixel_auroc"] is None and intervals["pixel_ap"] == [1.0, 1.0]
