"""Bootstrap confidence intervals of the localisation scores over the test images.

Test images are resampled with replacement, defective and normal ones separately, so that every resample has as many of
each as the test set. The segmenters of all seeds and arms are scored on the same resamples, so that differences between
arms are paired by test image (see `paired`). The interval of the mean over seeds shows what another test set of this
size could give. It does not include the variation over seeds, which is reported as a standard deviation. Pixels are
counted per image in a thousand bins, so that a resample is a weighted sum. The ends of an interval err by less than
0.005.
Source: Efron and Tibshirani 1993, chapters 8 (several samples) and 13 (percentile interval).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.curves import auroc, average_precision, curve_from_counts, f1_max, overlap_area
from defect_core.metrics.localisation import PRO_FPR_LIMIT, count_image
from defect_core.metrics.spread import interval_of

BINS = 1024
RESAMPLES = 400
_CHUNK = 100  # resamples at once; bounds the memory

Array = NDArray[np.float64]


class ImageTables(NamedTuple):
    """Contributions of N images to the scores: counts `[N,B]` in bins of falling score, and numbers `[N]`.

    Attributes:
        positive: number of defective pixels in each bin.
        negative: number of normal pixels in each bin.
        overlap: sum of 1 / (area of its region) over the defective pixels in each bin.
        regions: number of defect regions.
        both: number of defective pixels that are predicted defective.
        either: number of pixels that are defective or predicted defective.
        score: image score.
        label: whether the image is defective.
    """

    positive: Array
    negative: Array
    overlap: Array
    regions: Array
    both: Array
    either: Array
    score: Array
    label: NDArray[np.bool_]


def image_tables(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], window: int, iou_threshold: float = 0.5
) -> ImageTables:
    """Returns the counts of each image.

    Args:
        maps: score maps `[H,W]`.
        masks: bool `[H,W]`.
        window: side of the pooling window of the image score in pixels.
        iou_threshold: pixels with a higher score are predicted defective.
    """
    defective = [score_map[mask] for score_map, mask in zip(maps, masks, strict=True)]
    pool = np.concatenate([*defective, *(score_map.ravel()[::16] for score_map in maps)])
    # Half of the edges are quantiles of the scores of defective pixels, the other half of all scores.
    samples = [np.concatenate(defective), pool]
    edges = np.unique(np.concatenate([np.quantile(s, np.linspace(0, 1, BINS // 2)) for s in samples if len(s)]))
    bins = len(edges) + 1
    rows: list[tuple] = []
    for score_map, mask in zip(maps, masks, strict=True):
        bin_of = len(edges) - np.searchsorted(edges, score_map, "right")
        counts = count_image(score_map, mask, window, iou_threshold)
        rows.append(
            (
                np.bincount(bin_of[mask], minlength=bins),
                np.bincount(bin_of[~mask], minlength=bins),
                np.bincount(bin_of[mask], 1.0 / counts.area.astype(np.float64), bins),
                counts.regions,
                counts.intersection,
                counts.union,
                counts.score,
                counts.is_defective,
            )
        )
    columns = [np.array(column, np.float64) for column in zip(*rows, strict=True)]
    *counts_and_scores, label = columns
    return ImageTables._make([*counts_and_scores, label.astype(bool)])


def bootstrap_intervals(
    tables: Sequence[ImageTables],
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    fpr_limit: float = PRO_FPR_LIMIT,
) -> dict[str, list[float] | None]:
    """Returns the interval of the mean over seeds for each score.

    Args:
        tables: one per seed, of the same test images in the same order.
        seed: seed of the resampling.
        resamples: number of resamples.
        level: fraction of the resamples inside the interval.
        fpr_limit: upper bound of the false positive rate in PRO.

    Returns:
        [low, high] for `pixel_auroc, pixel_ap, pixel_f1_max, pro, iou, image_auroc, image_ap, image_f1_max`.
        Resamples in which a score is undefined (no defective or no normal image) are ignored. A score that is
        undefined in half of them or more has None.
    """
    samples = bootstrap_samples(tables, seed, resamples, fpr_limit)
    return {name: interval_of(values.mean(0), level) for name, values in samples.items()}


def bootstrap_samples(
    tables: Sequence[ImageTables], seed: int, resamples: int = RESAMPLES, fpr_limit: float = PRO_FPR_LIMIT
) -> dict[str, Array]:
    """Returns the score of each seed on each resample, `[K,R]` by score, NaN where it is undefined.

    Args:
        tables: one per seed (K), of the same test images in the same order.
        seed: seed of the resampling.
        resamples: number of resamples (R).
        fpr_limit: upper bound of the false positive rate in PRO.
    """
    weights = bootstrap_weights(tables[0].label, seed, resamples)
    values: dict[str, list[Array]] = {}
    for table in tables:
        parts = [_weighted_scores(table, weights[i : i + _CHUNK], fpr_limit) for i in range(0, resamples, _CHUNK)]
        for name in parts[0]:
            values.setdefault(name, []).append(np.concatenate([part[name] for part in parts]))
    return {name: np.stack(rows) for name, rows in values.items()}


def bootstrap_weights(label: NDArray[np.bool_], seed: int, resamples: int = RESAMPLES) -> Array:
    """Returns how often each image is in each resample, `[R,N]`.

    Equal labels and seeds give equal weights, so the resamples of two arms are the same.

    Args:
        label: whether each image is defective `[N]`. A resample has as many images of each class as the test set.
        seed: seed of the resampling.
        resamples: number of resamples (R).
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(label)))
    for is_defective in (True, False):
        (chosen,) = np.nonzero(label == is_defective)
        if len(chosen):
            weights[:, chosen] = rng.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), resamples)
    return weights


def _weighted_scores(table: ImageTables, weights: Array, fpr_limit: float) -> dict[str, Array]:
    """Every score under each row of image weights `[R,N]`, NaN where it is undefined."""
    positive, negative = weights @ table.positive, weights @ table.negative
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = weights @ table.overlap / (weights @ table.regions)[:, None]
        iou = (weights @ table.both) / (weights @ table.either)
    order = np.argsort(-table.score, kind="stable")
    ranked = table.score[order]
    group = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))  # images with equal scores share a threshold
    one_hot = np.zeros((len(ranked), group[-1] + 1))
    one_hot[np.arange(len(ranked)), group] = 1
    ordered, label = weights[:, order], table.label[order]
    defective, normal = (ordered * label) @ one_hot, (ordered * ~label) @ one_hot
    columns: dict[str, Array] = {}
    pixel_curves = [curve_from_counts(*row) for row in zip(positive, negative, overlap, strict=True)]
    image_curves = [curve_from_counts(*row) for row in zip(defective, normal, strict=True)]
    for level, curves in (("pixel", pixel_curves), ("image", image_curves)):
        columns[f"{level}_auroc"] = _column([auroc(curve) for curve in curves])
        columns[f"{level}_ap"] = _column([average_precision(curve) for curve in curves])
        columns[f"{level}_f1_max"] = _column([(f1_max(curve) or (None,))[0] for curve in curves])
        if level == "pixel":
            columns["pro"] = _column([overlap_area(curve, fpr_limit) for curve in curves])
            columns["iou"] = np.where(positive.sum(1) > 0, iou, np.nan)
    return columns


def _column(values: list[float | None]) -> Array:
    """The values as an array, with NaN for None."""
    return np.array(values, np.float64)
