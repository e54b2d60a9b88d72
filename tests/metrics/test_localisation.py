"""Localisation scores against scikit-learn and against brute force over every threshold."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from defect_core.metrics.curves import auroc, average_precision, f1_max, ranking_curve
from defect_core.metrics.localisation import (
    image_score,
    intersection_over_union,
    localisation_scores,
    per_region_overlap,
    pooling_window,
)


def _random_case(seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, 12, 12)).astype(np.float32)
    if ties:
        scores = np.round(scores, 0)
    masks = ndimage.binary_dilation(rng.random((3, 12, 12)) > 0.97, iterations=1)
    masks[0, 5, 5] = True
    return scores + masks * 0.7, masks


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ranking_scores_equal_scikit_learn(seed, ties):
    scores, masks = _random_case(seed, ties)
    curve = ranking_curve(scores, masks)
    assert auroc(curve) == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()), abs=1e-9)
    assert average_precision(curve) == pytest.approx(average_precision_score(masks.ravel(), scores.ravel()), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_f1_max_equals_the_best_of_all_thresholds(ties):
    scores, masks = _random_case(5, ties)
    best = 0.0
    for threshold in np.unique(scores):
        predicted = scores >= threshold
        best = max(best, 2 * (predicted & masks).sum() / (predicted.sum() + masks.sum()))
    value, threshold = f1_max(ranking_curve(scores, masks))
    assert value == pytest.approx(best, abs=1e-12)
    predicted = scores >= threshold
    assert 2 * (predicted & masks).sum() / (predicted.sum() + masks.sum()) == pytest.approx(best, abs=1e-12)


def _brute_force_pro(scores, masks, limit):
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        overlaps = []
        for score, mask in zip(scores, masks, strict=True):
            labelled, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [(score[labelled == r] >= threshold).mean() for r in range(1, count + 1)]
        points.append(((scores[~masks] >= threshold).mean(), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_pro_equals_brute_force_over_every_threshold(ties, limit):
    scores, masks = _random_case(7, ties)
    assert per_region_overlap(scores, masks, limit) == pytest.approx(_brute_force_pro(scores, masks, limit), abs=1e-9)


def test_pro_counts_a_small_region_as_much_as_a_large_one():
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = True
    mask[4:8, 4:8] = True
    only_small, only_large = np.zeros((10, 10)), np.zeros((10, 10))
    only_small[0, 0] = 1.0
    only_large[4:8, 4:8] = 1.0
    assert per_region_overlap([only_small], [mask]) == pytest.approx(per_region_overlap([only_large], [mask]))
    assert per_region_overlap([mask.astype(float)], [mask]) == 1.0


def test_iou_pools_the_pixels_of_all_images():
    masks = [np.array([[True, True], [False, False]]), np.zeros((2, 2), bool)]
    maps = [np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([[0.9, 0.0], [0.0, 0.0]])]
    assert intersection_over_union(maps, masks) == pytest.approx(1 / 4)


def test_image_score_is_the_maximum_of_the_average_pooled_map():
    score_map = np.random.default_rng(0).random((17, 23))
    windows = np.lib.stride_tricks.sliding_window_view(score_map, (5, 5))
    assert image_score(score_map, 5) == pytest.approx(windows.mean((2, 3)).max())
    assert image_score(score_map, 1) == pytest.approx(score_map.max())
    assert image_score(np.full((4, 4), 0.3), 21) == pytest.approx(0.3)
    assert [pooling_window(s) for s in (256, 128, 32)] == [21, 11, 3]


def test_undefined_scores_are_none_with_a_reason_and_never_nan():
    blank = np.zeros((8, 8))
    normal = localisation_scores([blank, blank], [np.zeros((8, 8), bool)] * 2)
    assert normal["pixel_ap"] is None and normal["image_auroc"] is None and normal["pro"] is None
    assert "no positives" in normal["reasons"]["pixel_ap"]
    full = localisation_scores([blank], [np.ones((8, 8), bool)])
    assert full["pixel_ap"] == 1.0 and full["pixel_auroc"] is None and full["pro"] is None
    assert "no negatives" in full["reasons"]["image_auroc"]
    for result in (normal, full):
        values = {name: value for name, value in result.items() if name != "reasons"}
        assert all(value is None or np.isfinite(value) for value in values.values())
        assert {name for name, value in values.items() if value is None} == set(result["reasons"])
    assert set(localisation_scores([], [])["reasons"].values()) == {"no images"}


def test_nan_scores_and_different_shapes_raise():
    with pytest.raises(ValueError, match="finite"):
        ranking_curve([0.1, np.nan], [True, False])
    with pytest.raises(ValueError, match="shape"):
        ranking_curve([0.1], [True, False])
    with pytest.raises(ValueError, match="HxW"):
        localisation_scores([np.zeros((2, 3))], [np.zeros((3, 2), bool)])
