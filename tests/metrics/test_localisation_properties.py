"""Properties of the localisation scores on random input, and the binned mode against the exact one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from defect_core.metrics.binning import BINS, bin_numbers, lower_edges
from defect_core.metrics.bootstrap import _weighted_scores, bootstrap_intervals, image_tables
from defect_core.metrics.curves import (
    auroc,
    average_precision,
    curve_from_classes,
    f1_max,
    overlap_area,
    ranking_curve,
)
from defect_core.metrics.localisation import localisation_scores, overlap_at_thresholds, per_region_overlap
from defect_core.metrics.localisation_metrics import LocalisationScores

# few levels, so that ties are common, or finite floats of any size
LEVELS = st.sampled_from([-2.0, -0.0, 0.0, 0.1, 0.25, 0.5, 1.0, 3e4])
SCORES = st.one_of(LEVELS, st.floats(-1e6, 1e6, width=32))


@st.composite
def maps_and_masks(draw, least_images=1, elements=SCORES):
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).filter(lambda s: s[0] >= least_images))
    return draw(arrays(np.float32, shape, elements=elements)), draw(arrays(np.bool_, shape))


def _compute(scores, masks, thresholds=None):
    metric = LocalisationScores(window=1, thresholds=thresholds)
    metric.update(scores, masks)
    return _values(metric)


def _values(metric):
    values = {name: value.item() for name, value in metric.compute().items()}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


@settings(max_examples=150, deadline=None)
@given(maps_and_masks())
def test_ranking_scores_equal_scikit_learn(case):
    scores, masks = case
    curve, flat, labels = ranking_curve(scores, masks), scores.ravel(), masks.ravel()
    if labels.any():
        assert average_precision(curve) == pytest.approx(average_precision_score(labels, flat), abs=1e-9)
        precision, recall, _ = precision_recall_curve(labels, flat)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert f1_max(curve)[0] == pytest.approx(best, abs=1e-9)
    else:
        assert average_precision(curve) is None and f1_max(curve) is None
    if labels.any() and not labels.all():
        assert auroc(curve) == pytest.approx(roc_auc_score(labels, flat), abs=1e-9)
    else:
        assert auroc(curve) is None


@settings(max_examples=100, deadline=None)
@given(maps_and_masks(), st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_equals_the_loop_over_every_threshold(case, limit):
    scores, masks = case
    value = per_region_overlap(scores, masks, limit)
    if not masks.any() or masks.all():
        assert value is None
        return
    assert value == pytest.approx(_pro_by_loop(scores, masks, limit), abs=1e-9)


def _pro_by_loop(scores, masks, limit):
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        overlaps = []
        for score, mask in zip(scores, masks, strict=True):
            labelled, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [(score[labelled == region] >= threshold).mean() for region in range(1, count + 1)]
        points.append(((scores[~masks] >= threshold).mean(), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@settings(max_examples=80, deadline=None)
@given(maps_and_masks(least_images=2), st.randoms(use_true_random=False), st.sampled_from([None, "binned"]))
def test_scores_do_not_depend_on_order_or_batches_and_are_in_range(case, random, thresholds):
    scores, masks = case
    whole = _compute(scores, masks, thresholds)
    order = list(range(len(scores)))
    random.shuffle(order)
    parts = LocalisationScores(window=1, thresholds=thresholds)
    for index in order:
        parts.update(scores[index : index + 1], masks[index : index + 1])
        if random.random() < 0.3:
            parts.compute()  # a call in between changes nothing
    again = _values(parts)
    for name, value in whole.items():
        assert again[name] == (None if value is None else pytest.approx(value, abs=1e-12))
        assert value is None or name.endswith("threshold") or 0 <= value <= 1


@settings(max_examples=60, deadline=None)
@given(maps_and_masks(elements=st.integers(-8, 8).map(float)))
def test_exact_scores_depend_only_on_the_order_of_the_values(case):
    scores, masks = case
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro", "image_auroc", "image_ap")
    plain, moved = _compute(scores, masks), _compute(np.exp(scores / 4) * 3 - 7, masks)
    assert [moved[n] for n in names] == [None if plain[n] is None else pytest.approx(plain[n]) for n in names]


@settings(max_examples=60, deadline=None)
@given(maps_and_masks(elements=LEVELS))
def test_the_binned_mode_is_exact_if_no_two_scores_share_a_bin(case):
    exact, binned = localisation_scores(*case, window=1), _compute(*case, "binned")
    del exact["reasons"]
    assert exact == _compute(*case)
    for name, value in exact.items():
        if name == "pixel_f1_threshold" and value is not None:
            assert -1e-9 <= value - binned[name] <= abs(value) / 1024  # the lower edge of the bin
        else:
            assert binned[name] == (None if value is None else pytest.approx(value, abs=1e-12))


@pytest.mark.parametrize("kind", ["sigmoid", "saturated", "logits", "wide"])
def test_the_binned_mode_errs_by_less_than_a_thousandth_and_returns_a_bound(kind):
    rng = np.random.default_rng(len(kind))
    masks = ndimage.binary_dilation(rng.random((6, 64, 64)) > 0.998, iterations=2)
    logits = ndimage.gaussian_filter(masks.astype(np.float64), (0, 1, 1)) * 6 + rng.normal(size=masks.shape) - 2
    scores = {
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "saturated": 1 / (1 + np.exp(-2 * logits - 4)),
        "logits": logits,
        "wide": np.exp(5 * logits),
    }[kind]
    exact, binned = _compute(scores, masks), _compute(scores, masks, "binned")
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro", "iou"):
        assert binned[name] == pytest.approx(exact[name], abs=1e-3), name
        assert 0.05 < exact[name] < 0.999
    assert abs(binned["pixel_auroc"] - exact["pixel_auroc"]) <= binned["pixel_auroc_error_bound"] < 1e-3


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, 20, elements=st.one_of(SCORES, st.floats(0.25, 1.5, width=32), st.floats(width=32))))
def test_bins_grow_with_the_score_and_start_at_their_lower_edge(values):
    values = np.sort(values[np.isfinite(values)])
    bins = bin_numbers(values).astype(np.int64)
    assert np.all(np.diff(bins) >= 0) and np.all((bins >= 0) & (bins < BINS))
    edges = lower_edges(bins)
    assert np.all(edges <= values) and np.array_equal(bin_numbers(edges), bins)
    normal = np.abs(values) > 1e-37
    assert np.all((values - edges)[normal] <= np.abs(values)[normal] / 1024)


@pytest.mark.parametrize("thresholds", [None, "binned"])
@pytest.mark.parametrize("mask", ["empty", "full"])
@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_constant_maps_and_masks_give_values_or_nan(thresholds, mask, constant):
    shape = (2, 5, 5)
    case = np.full(shape, constant), np.full(shape, mask == "full")
    missing = {name for name, value in _compute(*case, thresholds).items() if value is None}
    assert missing == set(localisation_scores(*case, window=1)["reasons"])
    assert "pixel_auroc" in missing and ("pixel_ap" in missing) == (mask == "empty")
    half = np.zeros(shape, bool)
    half[0] = True
    result = _compute(np.full(shape, constant), half, thresholds)
    assert result["pixel_auroc"] == result["image_auroc"] == 0.5 and result["pixel_ap"] == 0.5
    assert result["pro"] == pytest.approx(0.15)  # one straight line from (0, 0) to (1, 1), up to 0.3


def test_four_connectivity_splits_regions_that_touch_at_a_corner():
    mask = np.array([[True, False, False], [False, True, True], [False, True, True]])
    score = np.where(mask, 0.0, 0.5)
    score[0, 0] = 1.0
    assert per_region_overlap([score], [mask], 1.0, connectivity=8) == pytest.approx(0.2)
    assert per_region_overlap([score], [mask], 1.0, connectivity=4) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="4 or 8"):
        per_region_overlap([score], [mask], connectivity=6)


def _public_script(scores, masks, steps, limit):
    """The loop of the public evaluation scripts."""
    points = []
    low, high = scores.min(), scores.max()
    for threshold in low + (high - low) / steps * np.arange(steps):
        predicted = scores > np.float32(threshold)
        overlaps = []
        for hit, mask in zip(predicted, masks, strict=True):
            labelled, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [hit[labelled == region].mean() for region in range(1, count + 1)]
        points.append((predicted[~masks].mean(), np.mean(overlaps)))
    points = sorted(p for p in points if p[0] < limit)
    x, y = np.array(points).T
    return np.trapezoid(y, x / x.max())


@pytest.mark.parametrize("steps", [100, 200])
def test_overlap_at_thresholds_equals_the_loop_of_the_public_scripts(steps):
    rng = np.random.default_rng(steps)
    masks = ndimage.binary_dilation(rng.random((3, 24, 24)) > 0.98, iterations=1)
    scores = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    value = overlap_at_thresholds(scores, masks, steps)
    assert value == pytest.approx(_public_script(scores, masks, steps, 0.3), abs=1e-6)
    assert abs(value - per_region_overlap(scores, masks)) > 1e-3  # so that both functions are needed


def test_a_limit_out_of_range_and_scores_that_are_not_finite_raise():
    curve = curve_from_classes(np.float32([1]), np.float32([0]))
    for limit in (0, -1, 1.5):
        with pytest.raises(ValueError, match="fpr_limit"):
            overlap_area(curve, limit)
    for thresholds in (None, "binned"):
        with pytest.raises(ValueError, match="finite"):
            LocalisationScores(thresholds=thresholds).update([np.array([[np.inf]])], [np.array([[True]])])


def _frozen_case(seed):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 12, (8, 9, 7)) == 0
    masks[::3] = False
    return ((rng.integers(0, 32, masks.shape) + 8 * masks) / 64).astype(np.float32), masks


# computed by the three implementations that were here before there was one
FROZEN_SCORES = {
    "pixel_auroc": 0.710090119085935,
    "pixel_ap": 0.2360502874459923,
    "pixel_f1_max": 0.26666666666666666,
    "pro": 0.3237934691148841,
    "iou": 0.15384615384615385,
    "image_auroc": 0.5,
    "image_ap": 0.6295238095238095,
    "image_f1_max": 0.8333333333333334,
}
# by the bootstrap that resamples defective and normal images separately
FROZEN_INTERVALS = {
    "pixel_auroc": [0.523426, 0.630864],
    "pixel_ap": [0.084862, 0.209773],
    "pixel_f1_max": [0.114811, 0.254269],
    "pro": [0.121083, 0.275489],
    "iou": [0.054404, 0.125],
    "image_auroc": [0.066667, 0.7],
    "image_ap": [0.524869, 0.854039],
    "image_f1_max": [0.769231, 0.884615],
}


def test_exact_binned_and_bootstrap_scores_equal_the_frozen_values():
    maps, masks = _frozen_case(1)
    exact = localisation_scores(maps, masks, window=3)
    assert {name: exact[name] for name in FROZEN_SCORES} == FROZEN_SCORES
    metric = LocalisationScores(window=3, thresholds="binned")
    metric.update(maps, masks)
    assert {name: metric.compute()[name].item() for name in FROZEN_SCORES} == FROZEN_SCORES
    tables = [image_tables(maps, masks, 3), image_tables(maps[::-1], masks, 3)]
    assert bootstrap_intervals(tables, seed=1) == FROZEN_INTERVALS
    whole = _weighted_scores(tables[0], np.ones((1, len(maps))), 0.3)
    assert {name: whole[name][0] for name in FROZEN_SCORES} == pytest.approx(FROZEN_SCORES, abs=1e-12)
