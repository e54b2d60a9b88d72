"""The inspector's figures of one arm: escapes, overkill and found regions on test images at cross-fitted thresholds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.data.masks import label_components
from defect_core.evaluation.segmentation.data import ArmData, ImageInfo, Sample
from defect_core.evaluation.segmentation.evaluate import Evaluation
from defect_core.evaluation.segmentation.thresholds import RULE, CrossFit
from defect_core.metrics.inspection import (
    CONTRAST_RING,
    HIT_RULE,
    RegionOutcomes,
    bin_of,
    match_regions,
    region_contrast,
    tercile_edges,
    wilson_interval,
)

INTERVAL = "Wilson, 95 %, of the mean rate over seeds, with the number of test images or regions as sample size"
NO_EDGES = "needs at least 3 real training regions for terciles"

# rates of each seed, or None, and the number of items
Rates = Sequence[float | None]


class SeedOutcome(NamedTuple):
    """Outcome of the test of one seed.

    Attributes:
        evaluation: with the image scores and the thresholds.
        regions: by overkill target, the regions of each test image.
    """

    evaluation: Evaluation
    regions: dict[str, list[RegionOutcomes]]


class RegionRecorder:
    """Matches the regions of each test image at all thresholds of a model while it is evaluated.

    Args:
        thresholds: image-score threshold by overkill target, None if unavailable.
        window: side of the pooling window of the image score in pixels.
    """

    def __init__(self, thresholds: Mapping[str, float | None], window: int) -> None:
        self.thresholds = {key: value for key, value in thresholds.items() if value is not None}
        self.window = window
        self.regions: dict[str, list[RegionOutcomes]] = {key: [] for key in self.thresholds}

    def __call__(self, score_map: NDArray[np.float32], sample: Sample) -> None:
        """Match the regions of one image."""
        for key, threshold in self.thresholds.items():
            self.regions[key].append(match_regions(score_map, sample.mask, threshold, self.window, sample.image))


def summarise_inspection(
    data: ArmData, fitted: CrossFit, seeds: Sequence[int], tests: Sequence[SeedOutcome]
) -> dict[str, Any]:
    """Combine the figures of all seeds.

    Rates are means over the seeds. A region of an image with several defect types counts for each of them.

    Args:
        data: images of the arm, with `test_info`.
        fitted: the cross-fitted scores behind the thresholds.
        seeds: the seeds.
        tests: one per seed.

    Returns:
        `protocol`, `seeds`, `targets` (see docs/inspection.md) and `images`: `name` and `defects` of each test image,
        and the image `score` of each seed and image.
    """
    size_edges, contrast_edges = training_edges(data)
    first = tests[0].evaluation.thresholds
    targets: dict[str, Any] = {}
    for key, point in first.items():
        entry: dict[str, Any] = {"target": point.target, "support": point.support, "note": point.note}
        if point.threshold is not None:
            thresholds = [float(test.evaluation.thresholds[key].threshold or 0.0) for test in tests]
            entry["threshold"] = [round(value, 6) for value in thresholds]
            entry |= _image_figures(data.test_info, tests, thresholds)
            entry |= _region_figures(data.test_info, [test.regions[key] for test in tests], size_edges, contrast_edges)
        targets[key] = entry
    return {
        "protocol": {
            "folds": fitted.folds,
            "fold_steps": fitted.steps,
            "held_out_normal": len(fitted.normal),
            "held_out_defects": len(fitted.defect),
            "threshold_rule": RULE,
            "hit_rule": HIT_RULE,
            "terciles": "of the regions of the real training defects",
            "contrast": f"grey levels, against a ring of {CONTRAST_RING} px at the segmenter's size",
            "interval": INTERVAL,
        },
        "seeds": list(seeds),
        "targets": targets,
        "images": {
            "name": [info.name for info in data.test_info],
            "defects": [list(info.defects) for info in data.test_info],
            "score": [[round(float(score), 6) for score in test.evaluation.tables.score] for test in tests],
        },
    }


def training_edges(data: ArmData) -> tuple[list[float] | None, list[float] | None]:
    """Return the tercile edges of area (pixels of the original image) and contrast of the real training regions."""
    areas: list[float] = []
    contrasts: list[float] = []
    if data.training is not None:
        for sample, info in zip(data.training.real, data.training.real_info, strict=True):
            labels, count = label_components(sample.mask)
            areas += (np.bincount(labels.ravel(), minlength=count + 1)[1:] * info.pixel_area).tolist()
            contrasts += region_contrast(sample.image, labels, count).tolist()
    return tercile_edges(areas), tercile_edges(contrasts)


def _image_figures(
    infos: Sequence[ImageInfo], tests: Sequence[SeedOutcome], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Return escape rate, overkill, and the escape rate of each defect type."""
    rejected = [test.evaluation.tables.score > threshold for test, threshold in zip(tests, thresholds, strict=True)]
    label = tests[0].evaluation.tables.label
    figures: dict[str, Any] = {
        "escape": _rate([~seed[label] for seed in rejected]),
        "overkill": _rate([seed[~label] for seed in rejected]),
        "escape_by_defect": {},
    }
    for defect in _defect_types(infos):
        own = np.array([defect in info.defects for info in infos])
        figures["escape_by_defect"][defect] = _rate([~seed[own] for seed in rejected])
    return figures


def _region_figures(
    infos: Sequence[ImageInfo],
    regions: Sequence[list[RegionOutcomes]],
    size_edges: list[float] | None,
    contrast_edges: list[float] | None,
) -> dict[str, Any]:
    """Return the figures of the defect regions and of the false regions."""
    images = regions[0]
    owner = np.repeat(np.arange(len(images)), [len(image.area) for image in images])
    area = _concatenate(image.area * info.pixel_area for image, info in zip(images, infos, strict=True))
    contrast = _concatenate(image.contrast for image in images)
    found = [_concatenate((image.is_found for image in seed), bool) for seed in regions]
    false = [float(np.mean([image.false_regions for image in seed])) for seed in regions]
    groups = {"all": np.ones(len(owner), bool)}
    groups |= {
        d: np.isin(owner, [i for i, info in enumerate(infos) if d in info.defects]) for d in _defect_types(infos)
    }
    return {
        "region_recall": _rate(found),
        "region_recall_by_defect": {d: _rate([s[own] for s in found]) for d, own in groups.items() if d != "all"},
        "false_regions_per_image": round(float(np.mean(false)), 6),
        "smallest_found_px": {name: [_extreme(area[own & s], np.min) for s in found] for name, own in groups.items()},
        "largest_missed_px": {name: [_extreme(area[own & ~s], np.max) for s in found] for name, own in groups.items()},
        "recall_by_size": _binned(area, size_edges, found),
        "recall_by_contrast": _binned(contrast, contrast_edges, found),
    }


def _binned(
    values: NDArray[np.float64], edges: list[float] | None, found: Sequence[NDArray[np.bool_]]
) -> dict[str, Any]:
    """Return the region recall in each bin, the lowest values first."""
    if edges is None:
        return {"reason": NO_EDGES}
    bins = bin_of(values, edges)
    return {
        "edges": [round(edge, 3) for edge in edges],
        "bins": [_rate([seed[bins == number] for seed in found]) for number in range(len(edges) + 1)],
    }


def _rate(events: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """Return the mean rate over seeds with its interval; `events` has one value per item for each seed."""
    count = len(events[0])
    if not count:
        return {"rate": None, "interval": None, "count": 0, "per_seed": [None] * len(events)}
    per_seed = [float(seed.mean()) for seed in events]
    mean = float(np.mean(per_seed))
    return {
        "rate": round(mean, 6),
        "interval": wilson_interval(min(mean * count, count), count),
        "count": count,
        "per_seed": [round(rate, 6) for rate in per_seed],
    }


def _extreme(areas: NDArray[np.float64], choose: Callable[[NDArray[np.float64]], Any]) -> int | None:
    return round(float(choose(areas))) if len(areas) else None


def _concatenate(parts: Iterable[NDArray[Any]], dtype: type = float) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def _defect_types(infos: Sequence[ImageInfo]) -> list[str]:
    return sorted({defect for info in infos for defect in info.defects})
