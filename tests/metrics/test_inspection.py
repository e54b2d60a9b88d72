"""The inspector's figures: intervals, predicted pixels, regions, thresholds, and the classes over them."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torchmetrics import MetricCollection

from defect_core.metrics.inspection import (
    bin_of,
    match_regions,
    predict_pixels,
    region_contrast,
    tercile_edges,
    wilson_interval,
)
from defect_core.metrics.inspection_metrics import (
    EscapeRate,
    FalseRegionsPerImage,
    Overkill,
    RecallByContrast,
    RecallBySize,
    RegionRecall,
    SmallestDefectFound,
)
from defect_core.metrics.localisation import image_score
from defect_core.metrics.operating_point import overkill_threshold, required_normals

pytestmark = pytest.mark.filterwarnings("ignore:.*was called before the:UserWarning")  # compute without update


def _blobs(seed, count=8, side=40):
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.random((side, side)), 2) for _ in range(count)])
    maps = ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    masks = np.roll(maps, 3, axis=2) > 0.7
    masks[::2] = False
    return maps, masks


@pytest.mark.parametrize(("count", "total"), [(0, 20), (1, 20), (7, 9), (75, 75), (3, 1000)])
def test_wilson_intervals_are_those_of_scipy(count, total):
    expected = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, total) == pytest.approx([expected.low, expected.high], abs=1e-6)


def test_an_interval_needs_items_and_a_possible_count():
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="expected 0 to 4"):
        wilson_interval(5, 4)


@pytest.mark.parametrize("window", [1, 3, 4, 7])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99, 1.0])
def test_an_image_has_predicted_pixels_exactly_if_it_is_rejected(window, quantile):
    maps, _ = _blobs(0)
    scores = [image_score(score_map, window) for score_map in maps]
    threshold = float(np.quantile(scores, quantile))
    predicted = [predict_pixels(score_map, threshold, window).any() for score_map in maps]
    assert predicted == [score > threshold for score in scores]


@pytest.mark.parametrize("window", [3, 4])
def test_predicted_pixels_are_those_of_the_definition(window, monkeypatch):
    """Every window is visited one by one; strips give the same pixels."""
    score_map = _blobs(1, 1, 23)[0][0]
    expected = np.zeros(score_map.shape, bool)
    for top in range(24 - window):
        for left in range(24 - window):
            square = np.s_[top : top + window, left : left + window]
            if score_map[square].astype(float).mean() > 0.5:
                expected[square] |= score_map[square] > 0.5
    assert expected.any() and not expected.all()
    assert (predict_pixels(score_map, 0.5, window) == expected).all()
    monkeypatch.setattr("defect_core.metrics.localisation._STRIP_PIXELS", 100)
    assert (predict_pixels(score_map, 0.5, window) == expected).all()


def test_regions_are_found_by_one_pixel_and_false_without_one():
    mask = np.zeros((9, 9), bool)
    mask[1:3, 1:3] = mask[6, 6] = True
    score_map = np.zeros((9, 9))
    score_map[2, 2:4] = score_map[0, 7] = score_map[8, 0] = 0.9
    regions = match_regions(score_map, mask, 0.5, 1)
    assert regions.area.tolist() == [4, 1] and regions.is_found.tolist() == [True, False]
    assert regions.false_regions == 2
    assert not match_regions(score_map, mask, 0.9, 1).is_found.any()


def test_contrast_is_the_difference_to_the_ring():
    image = np.full((30, 30, 3), 100, np.uint8)
    regions = np.zeros((30, 30), int)
    regions[10:14, 10:14], regions[14:16, 10:14] = 1, 2
    image[regions == 1], image[regions == 2] = 130, 90
    image[:4] = 255  # more than a ring away
    assert region_contrast(image, regions, 2) == pytest.approx([30, 10])
    assert np.isnan(region_contrast(image, np.ones((30, 30), int), 1)).all()


def test_terciles_and_bins():
    assert tercile_edges([1, float("nan"), 2]) is None
    edges = tercile_edges(range(1, 10))
    assert np.bincount(bin_of(range(1, 10), edges)).tolist() == [3, 3, 3]
    assert bin_of([math.nan], [1.0]).tolist() == [-1]


@pytest.mark.parametrize(("target", "count"), [(0.05, 19), (0.05, 200), (0.01, 99), (0.01, 400)])
def test_a_measured_threshold_holds_its_target_on_new_scores(target, count):
    """Expected overkill is at most the target, and not far below it: over many samples of N scores."""
    rng = np.random.default_rng(0)
    points = [overkill_threshold(rng.random(count), target) for _ in range(3000)]
    assert {point.support for point in points} == {"measured"}
    expected = 1 - np.mean([point.threshold for point in points])  # uniform scores
    assert target - 1.2 / (count + 1) < expected < target + 0.002


@pytest.mark.parametrize("target", [0.05, 0.01, 0.001])
def test_the_required_number_of_images_is_where_a_quantile_begins(target):
    needed = required_normals(target)
    scores = np.linspace(0.1, 0.9, needed)
    assert overkill_threshold(scores, target).support == "measured"
    assert overkill_threshold(scores[1:], target).support != "measured"


@pytest.mark.parametrize("target", [0.01, 0.001])
def test_an_extrapolated_threshold_holds_its_target_on_average(target):
    """60 scores whose logits have an exponential tail."""
    rng, realised = np.random.default_rng(1), []
    for _ in range(3000):
        scores = 1 / (1 + np.exp(5 - rng.exponential(1, 60)))
        point = overkill_threshold(scores, target)
        assert point.support == "extrapolated" and point.threshold >= scores.max()
        assert "found 60: extrapolated from the 12 largest scores" in point.note
        realised.append((1 - point.threshold) / point.threshold * np.exp(-5))
    error = 3 * np.std(realised) / 3000**0.5
    assert 0.8 * target < np.mean(realised) < target + error  # below it where the largest score is the threshold


def test_too_few_scores_have_no_threshold():
    point = overkill_threshold(np.linspace(0, 0.5, 19), 0.01)
    assert point.threshold is None and point.support == "unavailable"
    assert point.note == "1 % overkill needs 99 held-out normal images (20 to extrapolate); found 19"
    for scores, target in (([0.5, 1.5], 0.05), ([0.5], 0.0), ([float("nan")], 0.05)):
        with pytest.raises(ValueError, match="expected"):
            overkill_threshold(scores, target)


METRICS = {
    "escape": EscapeRate(0.6, 3),
    "overkill": Overkill(0.6, 3),
    "recall": RegionRecall(0.6, 3),
    "false": FalseRegionsPerImage(0.6, 3),
    "size": RecallBySize(0.6, [5.0, 20.0], 3),
    "smallest": SmallestDefectFound(0.6, 3),
}


def test_classes_agree_with_the_functions_in_batches_and_in_a_collection():
    maps, masks = _blobs(2)
    collection = MetricCollection({name: metric.clone() for name, metric in METRICS.items()})
    for part in (slice(0, 3), slice(3, 8)):
        collection.update(torch.from_numpy(maps[part]), torch.from_numpy(masks[part]))
    result = collection.compute()
    rejected = np.array([image_score(score_map, 3) > 0.6 for score_map in maps])
    defective = masks.any((1, 2))
    outcomes = [match_regions(score_map, mask, 0.6, 3) for score_map, mask in zip(maps, masks, strict=True)]
    found = np.concatenate([o.is_found for o in outcomes])
    area = np.concatenate([o.area for o in outcomes])
    assert 0 < found.sum() < len(found)
    assert result["escape"] == np.mean(~rejected[defective])
    assert result["overkill"] == np.mean(rejected[~defective])
    assert result["recall"] == found.mean()
    assert result["false"] == np.mean([o.false_regions for o in outcomes])
    assert result["smallest"] == area[found].min()
    bins = bin_of(area, [5.0, 20.0])
    assert result["size"].tolist() == pytest.approx([found[bins == i].mean() for i in range(3)])
    ends = collection["size"].interval()
    assert ends.shape == (3, 2)
    assert ends[1].tolist() == wilson_interval(int(found[bins == 1].sum()), int((bins == 1).sum()))


def test_classes_are_undefined_without_items_and_reset():
    for name, metric in METRICS.items():
        own = metric.clone()
        own.update(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4))
        assert torch.isnan(own.compute()).all(), name
    recall = RegionRecall(0.5, 1)
    recall.update(np.ones((1, 4, 4)), np.ones((1, 4, 4)))
    recall.reset()
    assert torch.isnan(recall.compute())


def test_recall_by_contrast_needs_the_images():
    image = np.full((1, 20, 20, 3), 100, np.uint8)
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 2:4, 2:4] = mask[0, 12:14, 12:14] = True
    image[0, 2:4, 2:4], image[0, 12:14, 12:14] = 103, 180
    metric = RecallByContrast(0.5, [10.0], 1)
    metric.update(np.where(image[..., 0] > 150, 0.9, 0.1), mask, image)
    assert metric.compute().tolist() == [0.0, 1.0]
    tensors = RecallByContrast(0.5, [10.0], 1)
    tensors.update(np.where(image[..., 0] > 150, 0.9, 0.1), mask, torch.from_numpy(image).permute(0, 3, 1, 2))
    assert tensors.compute().tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="rising"):
        RecallBySize(0.5, [3.0, 3.0])
