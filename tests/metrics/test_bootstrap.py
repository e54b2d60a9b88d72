"""Bootstrap intervals against the exact scores of resampled images and against the spread of real test sets."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.metrics.bootstrap import _weighted_scores, bootstrap_intervals, image_tables
from defect_core.metrics.localisation import localisation_scores


def _case(seed, count=24, side=32):
    rng = np.random.default_rng(seed)
    masks = ndimage.binary_dilation(rng.random((count, side, side)) > 0.998, np.ones((1, 3, 3)), 2)
    masks[::3] = False
    strength = rng.uniform(0.5, 3, (count, 1, 1))
    return (1 / (1 + np.exp(-(rng.normal(size=masks.shape) + strength * masks - 2)))).astype(np.float32), masks


def test_weighted_scores_equal_the_scores_of_the_resampled_images():
    maps, masks = _case(0)
    weights = np.random.default_rng(1).multinomial(24, np.full(24, 1 / 24), 4).astype(float)
    scores = _weighted_scores(image_tables(maps, masks, 3), weights, 0.3)
    for row, weight in enumerate(weights.astype(int)):
        exact = localisation_scores(np.repeat(maps, weight, 0), np.repeat(masks, weight, 0), window=3)
        for name, value in exact.items():
            if name in scores:
                assert scores[name][row] == pytest.approx(
                    value, abs=5e-3 if name.startswith(("pixel", "pro")) else 1e-9
                )


def test_the_interval_contains_the_score_and_narrows_with_more_images():
    widths = []
    for count in (12, 96):
        maps, masks = _case(2, count)
        intervals = bootstrap_intervals([image_tables(maps, masks, 3)], seed=0, resamples=300)
        assert intervals == bootstrap_intervals([image_tables(maps, masks, 3)], seed=0, resamples=300)
        value = localisation_scores(maps, masks, window=3)
        assert all(low <= value[name] + 2e-3 and value[name] - 2e-3 <= high for name, (low, high) in intervals.items())
        widths.append(intervals["pixel_ap"][1] - intervals["pixel_ap"][0])
    assert widths[1] < 0.6 * widths[0]


def test_about_nine_in_ten_intervals_contain_the_score_of_a_large_test_set():
    maps, masks = _case(3, 400)
    truth = localisation_scores(maps, masks, window=3)["pixel_ap"]
    rng, covered = np.random.default_rng(0), 0
    for _ in range(40):
        chosen = rng.choice(400, 40, replace=False)
        low, high = bootstrap_intervals([image_tables(maps[chosen], masks[chosen], 3)], 0, 200)["pixel_ap"]
        covered += low <= truth <= high
    assert 32 <= covered <= 40


def test_scores_that_are_undefined_in_most_resamples_have_no_interval():
    maps, masks = _case(4, 6)
    normal = np.zeros_like(masks)
    assert set(bootstrap_intervals([image_tables(maps, normal, 1)], 0, 50).values()) == {None}
    intervals = bootstrap_intervals([image_tables(maps, np.ones_like(masks), 1)], 0, 50)
    assert intervals["pixel_auroc"] is None and intervals["pixel_ap"] == [1.0, 1.0]
