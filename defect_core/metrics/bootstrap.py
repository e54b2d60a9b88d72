"""How far the scores of a test set could have come out otherwise: percentile intervals over its images.

Test images are drawn with replacement, and every seed's segmenter is scored on the same draws; the spread of the mean
over seeds is what another test set of this size could have given. It says nothing of other seeds: their standard
deviation stands beside it. Pixels are counted per image in a thousand bins, so that a draw is a weighted sum
(the ends of an interval err by less than 0.005, a fraction of its width).
Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.localisation import image_score, region_weights
from defect_core.metrics.spread import interval_of

BINS = 1024
_CHUNK = 100  # draws at once; bounds the memory

Array = NDArray[np.float64]


class ImageTables(NamedTuple):
    """What N images add to the scores: counts `[N,B]` over bins of falling score, and numbers `[N]`."""

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
    """Count the pixels of each image.

    Args:
        maps, masks: `[H,W]` each; window, iou_threshold: see `localisation.LocalisationScores`.
    """
    defective = [score_map[mask] for score_map, mask in zip(maps, masks, strict=True)]
    pool = np.concatenate([*defective, *(score_map.ravel()[::16] for score_map in maps)])
    # edges follow the scores of the defects as well as those of everything: each of the two has half of the bins
    halves = [np.concatenate(defective), pool]
    edges = np.unique(np.concatenate([np.quantile(h, np.linspace(0, 1, BINS // 2)) for h in halves if len(h)]))
    bins = len(edges) + 1
    rows: list[tuple] = []
    for score_map, mask in zip(maps, masks, strict=True):
        place = len(edges) - np.searchsorted(edges, score_map, "right")
        weight, regions = region_weights(mask)
        found = score_map > iou_threshold
        rows.append(
            (
                np.bincount(place[mask], minlength=bins),
                np.bincount(place[~mask], minlength=bins),
                np.bincount(place[mask], weight, bins),
                regions,
                (found & mask).sum(),
                (found | mask).sum(),
                image_score(score_map, window),
                mask.any(),
            )
        )
    columns = [np.array(column, np.float64) for column in zip(*rows, strict=True)]
    return ImageTables(*columns[:-1], columns[-1].astype(bool))


def bootstrap_intervals(
    tables: Sequence[ImageTables],
    seed: int,
    draws: int = 400,
    level: float = 0.95,
    fpr_limit: float = 0.3,
) -> dict[str, list[float] | None]:
    """Intervals of the mean over seeds.

    Args:
        tables: one per seed, of the same test images in the same order.
        seed: decides the draws.
        level: what part of the draws the interval holds.

    Returns:
        [low, high] for `pixel_auroc, pixel_ap, pixel_f1_max, pro, iou, image_auroc, image_ap, image_f1_max`. Draws
        in which a score is not defined (no defect image, or no good one) are left out; None where that are more
        than half of them.
    """
    return {name: interval_of(drawn, level) for name, drawn in bootstrap_draws(tables, seed, draws, fpr_limit).items()}


def bootstrap_draws(
    tables: Sequence[ImageTables], seed: int, draws: int = 400, fpr_limit: float = 0.3
) -> dict[str, Array]:
    """What each draw of the test images gives, as a mean over seeds: `[draws]` by score, NaN where it is not defined.

    Args: see `bootstrap_intervals`.
    """
    count = len(tables[0].label)
    rng = np.random.default_rng(seed)
    values: dict[str, list[Array]] = {}
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)
        found = [_scores(table, weights, fpr_limit) for table in tables]
        for name in found[0]:
            values.setdefault(name, []).append(np.mean([scores[name] for scores in found], axis=0))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _scores(table: ImageTables, weights: Array, fpr_limit: float) -> dict[str, Array]:
    """Every score under each row of weights `[R,N]`, NaN where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        positive, negative = weights @ table.positive, weights @ table.negative
        overlap = weights @ table.overlap / (weights @ table.regions)[:, None]
        order = np.argsort(-table.score, kind="stable")
        ranked = table.score[order]
        group = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))  # images of one score share a place
        place = np.zeros((len(ranked), group[-1] + 1))
        place[np.arange(len(ranked)), group] = 1
        drawn, label = weights[:, order], table.label[order]
        images, good = (drawn * label) @ place, (drawn * ~label) @ place
        return {
            "pixel_auroc": _auroc(positive, negative),
            "pixel_ap": _average_precision(positive, negative),
            "pixel_f1_max": _f1_max(positive, negative),
            "pro": _overlap_area(overlap, negative, fpr_limit),
            "iou": np.where(positive.sum(1) > 0, (weights @ table.both) / (weights @ table.either), np.nan),
            "image_auroc": _auroc(images, good),
            "image_ap": _average_precision(images, good),
            "image_f1_max": _f1_max(images, good),
        }


def _auroc(positive: Array, negative: Array) -> Array:
    ahead = np.cumsum(negative, 1) - negative / 2
    return 1 - (positive * ahead).sum(1) / (positive.sum(1) * negative.sum(1))


def _average_precision(positive: Array, negative: Array) -> Array:
    right, wrong = np.cumsum(positive, 1), np.cumsum(negative, 1)
    precision = np.where(positive > 0, right / (right + wrong), 0)
    return (positive * precision).sum(1) / positive.sum(1)


def _f1_max(positive: Array, negative: Array) -> Array:
    right, wrong, total = np.cumsum(positive, 1), np.cumsum(negative, 1), positive.sum(1)
    return np.where(total > 0, (2 * right / (right + wrong + total[:, None])).max(1), np.nan)


def _overlap_area(overlap: Array, negative: Array, limit: float) -> Array:
    x1, y1 = np.cumsum(negative, 1) / negative.sum(1, keepdims=True), np.cumsum(overlap, 1)
    x0, y0 = (np.pad(a, ((0, 0), (1, 0)))[:, :-1] for a in (x1, y1))
    inside = np.clip(np.where(x1 > x0, (limit - x0) / (x1 - x0), 0), 0, 1)
    return (inside * (x1 - x0) * (2 * y0 + inside * (y1 - y0)) / 2).sum(1) / limit
