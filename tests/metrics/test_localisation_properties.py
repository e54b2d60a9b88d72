"""Properties of the localisation scores on drawn input, and the streaming form against the exact one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from defect_core.metrics.curves import curve_of, overlap_area
from defect_core.metrics.localisation import (
    LocalisationScores,
    auroc,
    average_precision,
    f1_max,
    overlap_at_thresholds,
    per_region_overlap,
    ranking_curve,
)
from defect_core.metrics.localisation_binned import _BINS, BinnedLocalisationScores, _bins, _lower_edges

# few levels, so that ties are the rule; finite floats of any size otherwise
LEVELS = st.sampled_from([-2.0, -0.0, 0.0, 0.1, 0.25, 0.5, 1.0, 3e4])
SCORES = st.one_of(LEVELS, st.floats(-1e6, 1e6, width=32))


@st.composite
def maps_and_masks(draw, least_images=1, elements=SCORES):
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).filter(lambda s: s[0] >= least_images))
    return draw(arrays(np.float32, shape, elements=elements)), draw(arrays(np.bool_, shape))


def _compute(scores, masks, cls=LocalisationScores, **options):
    metric = cls(window=1, **options)
    metric.update(scores, masks)
    return metric.compute()


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
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@settings(max_examples=80, deadline=None)
@given(maps_and_masks(least_images=2), st.randoms(use_true_random=False), st.sampled_from([0, 1]))
def test_scores_do_not_depend_on_order_or_batches_and_lie_within_bounds(case, random, form):
    scores, masks = case
    cls = (LocalisationScores, BinnedLocalisationScores)[form]
    whole = _compute(scores, masks, cls)
    order = list(range(len(scores)))
    random.shuffle(order)
    parts = cls(window=1)
    for index in order:
        parts.update(scores[index : index + 1], masks[index : index + 1])
        if random.random() < 0.3:
            parts.compute()  # asking in between changes nothing
    again = parts.compute()
    assert again.pop("reasons") == whole.pop("reasons")
    for name, value in whole.items():
        assert again[name] == (None if value is None else pytest.approx(value, abs=1e-12))
        assert value is None or name.endswith("threshold") or 0 <= value <= 1


@settings(max_examples=60, deadline=None)
@given(maps_and_masks(elements=st.integers(-8, 8).map(float)))
def test_the_exact_scores_follow_only_the_order_of_the_values(case):
    scores, masks = case
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro", "image_auroc", "image_ap")
    plain, moved = _compute(scores, masks), _compute(np.exp(scores / 4) * 3 - 7, masks)
    assert [moved[n] for n in names] == [None if plain[n] is None else pytest.approx(plain[n]) for n in names]


@settings(max_examples=60, deadline=None)
@given(maps_and_masks(elements=LEVELS))
def test_the_streaming_form_is_exact_where_no_two_scores_share_a_bin(case):
    exact, binned = _compute(*case), _compute(*case, BinnedLocalisationScores)
    assert binned["reasons"] == exact["reasons"]
    for name, value in exact.items():
        if name == "pixel_f1_threshold" and value is not None:
            assert -1e-9 <= value - binned[name] <= abs(value) / 1024  # the lower edge of the bin
        elif name != "reasons":
            assert binned[name] == (None if value is None else pytest.approx(value, abs=1e-12))


@pytest.mark.parametrize("kind", ["sigmoid", "saturated", "logits", "wide"])
def test_the_streaming_form_errs_by_less_than_a_thousandth_and_states_a_bound(kind):
    rng = np.random.default_rng(len(kind))
    masks = ndimage.binary_dilation(rng.random((6, 64, 64)) > 0.998, iterations=2)
    logits = ndimage.gaussian_filter(masks.astype(np.float64), (0, 1, 1)) * 6 + rng.normal(size=masks.shape) - 2
    scores = {
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "saturated": 1 / (1 + np.exp(-2 * logits - 4)),
        "logits": logits,
        "wide": np.exp(5 * logits),
    }[kind]
    exact, binned = _compute(scores, masks), _compute(scores, masks, BinnedLocalisationScores)
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro", "iou"):
        assert binned[name] == pytest.approx(exact[name], abs=1e-3), name
        assert 0.05 < exact[name] < 0.999
    assert abs(binned["pixel_auroc"] - exact["pixel_auroc"]) <= binned["error_bound"] < 1e-3


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, 20, elements=st.one_of(SCORES, st.floats(0.25, 1.5, width=32), st.floats(width=32))))
def test_bins_grow_with_the_score_and_start_at_their_lower_edge(values):
    values = np.sort(values[np.isfinite(values)])
    bins = _bins(values).astype(np.int64)
    assert np.all(np.diff(bins) >= 0) and np.all((bins >= 0) & (bins < _BINS))
    edges = _lower_edges(bins)
    assert np.all(edges <= values) and np.array_equal(_bins(edges), bins)
    normal = np.abs(values) > 1e-37
    assert np.all((values - edges)[normal] <= np.abs(values)[normal] / 1024)


@pytest.mark.parametrize("cls", [LocalisationScores, BinnedLocalisationScores])
@pytest.mark.parametrize("mask", ["empty", "full"])
@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_constant_maps_and_masks_give_values_or_none_with_a_reason(cls, mask, constant):
    shape = (2, 5, 5)
    result = _compute(np.full(shape, constant), np.full(shape, mask == "full"), cls)
    missing = {name for name, value in result.items() if value is None}
    assert missing == set(result["reasons"])
    assert "pixel_auroc" in missing and ("pixel_ap" in missing) == (mask == "empty")
    half = np.zeros(shape, bool)
    half[0] = True
    result = _compute(np.full(shape, constant), half, cls)
    assert result["pixel_auroc"] == result["image_auroc"] == 0.5 and result["pixel_ap"] == 0.5
    assert result["pro"] == pytest.approx(0.15)  # one straight line from (0, 0) to (1, 1), up to 0.3


def test_four_connected_regions_are_more_than_eight_connected_ones():
    mask = np.array([[True, False, False], [False, True, True], [False, True, True]])
    score = np.where(mask, 0.0, 0.5)
    score[0, 0] = 1.0
    assert per_region_overlap([score], [mask], 1.0, connectivity=8) == pytest.approx(0.2)
    assert per_region_overlap([score], [mask], 1.0, connectivity=4) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="4 or 8"):
        per_region_overlap([score], [mask], connectivity=6)


def _public_script(scores, masks, steps, limit):
    """The loop of the public scripts, written out."""
    points = []
    low, high = scores.min(), scores.max()
    for threshold in low + (high - low) / steps * np.arange(steps):
        found = scores > np.float32(threshold)
        overlaps = []
        for hit, mask in zip(found, masks, strict=True):
            labelled, count = ndimage.label(mask, np.ones((3, 3)))
            overlaps += [hit[labelled == region].mean() for region in range(1, count + 1)]
        points.append((found[~masks].mean(), np.mean(overlaps)))
    points = sorted(p for p in points if p[0] < limit)
    x, y = np.array(points).T
    return np.trapezoid(y, x / x.max())


@pytest.mark.parametrize("steps", [100, 200])
def test_the_threshold_grid_variant_equals_the_loop_of_the_public_scripts(steps):
    rng = np.random.default_rng(steps)
    masks = ndimage.binary_dilation(rng.random((3, 24, 24)) > 0.98, iterations=1)
    scores = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    value = overlap_at_thresholds(scores, masks, steps)
    assert value == pytest.approx(_public_script(scores, masks, steps, 0.3), abs=1e-6)
    assert abs(value - per_region_overlap(scores, masks)) > 1e-3  # which is why both are there


def test_a_limit_outside_its_range_and_scores_that_are_not_finite_are_refused():
    curve = curve_of(np.float32([1]), np.float32([0]))
    for limit in (0, -1, 1.5):
        with pytest.raises(ValueError, match="fpr_limit"):
            overlap_area(curve, limit)
    for cls in (LocalisationScores, BinnedLocalisationScores):
        with pytest.raises(ValueError, match="finite"):
            cls().update([np.array([[np.inf]])], [np.array([[True]])])
