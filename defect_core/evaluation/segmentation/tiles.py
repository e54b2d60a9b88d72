"""Training crops and stitched score maps at the working resolution (see `scale`). Memory is bounded per image."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import components
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import Sample, StoredImage
from defect_core.evaluation.segmentation.evaluate import (
    IOU_THRESHOLD,
    Evaluation,
    Observer,
    ScoreMapModel,
    describe_image_score,
    score_window,
)
from defect_core.evaluation.segmentation.scale import WorkingScale, tile_starts
from defect_core.metrics.binning import BINS, binned_curve, count_bins
from defect_core.metrics.bootstrap import BINS as TABLE_BINS
from defect_core.metrics.bootstrap import ImageTables
from defect_core.metrics.curves import ranking_curve
from defect_core.metrics.localisation import (
    PRO_FPR_LIMIT,
    ImageCounts,
    count_image,
    scores_from_curves,
)

TILES_PER_BATCH = 16
SHOWN_SIDE = 256
"""Longer side in pixels of the score maps that an evaluation keeps to be shown."""
_ATTEMPTS = 20  # to find a crop without a defect
_STRIP = 512  # rows of a score map that are counted at once


class _Counts(NamedTuple):
    """Counts of one image in the bins that have a pixel: numbers of the bins, and counts `[K]` (see `count_bins`)."""

    bins: NDArray[np.int64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    overlap: NDArray[np.float64]


def cut_crops(sample: Sample, scale: WorkingScale, rng: np.random.Generator) -> list[Sample]:
    """Return the training crops of an image at the working resolution, `scale.crops` of `[tile,tile]`.

    A crop of a defect image shows a random pixel of a random component at a random place of the crop, so that a small
    component is shown as often as a large one. Crops of a normal image are at random places.

    Args:
        sample: the whole image at the working resolution; reflected at its border where it is smaller than a tile.
        scale: the working resolution.
        rng: decides the places.
    """
    padded = _pad(sample, scale.tile)
    parts = components(padded.mask) if sample.mask.any() else []
    crops = []
    for _ in range(scale.crops):
        if parts:
            part = parts[int(rng.integers(len(parts)))]
            rows, columns = np.nonzero(part.mask)
            pixel = int(rng.integers(len(rows)))
            corner = part.top + int(rows[pixel]), part.left + int(columns[pixel])
            top, left = (p - int(rng.integers(scale.tile)) for p in corner)
        else:
            top, left = (int(rng.integers(n - scale.tile + 1)) for n in padded.mask.shape)
        crops.append(_crop(padded, top, left, scale.tile))
    return crops


def cut_normal_places(sample: Sample, scale: WorkingScale, rng: np.random.Generator) -> list[Sample]:
    """Return `scale.crops` crops of a defect image without a defect pixel; none if they are not found."""
    padded = _pad(sample, scale.tile)
    crops: list[Sample] = []
    for _ in range(_ATTEMPTS * scale.crops):
        top, left = (int(rng.integers(n - scale.tile + 1)) for n in padded.mask.shape)
        crop = _crop(padded, top, left, scale.tile)
        if not crop.mask.any():
            crops.append(crop)
        if len(crops) == scale.crops:
            return crops
    return []


def load_crops(images: Iterable[StoredImage], scale: WorkingScale) -> list[Sample]:
    """Return the training crops of stored images (see `cut_crops`); equal calls give equal crops.

    Raises:
        InputError: a file cannot be read.
    """
    rngs = (np.random.default_rng([number, 0]) for number in itertools.count())
    return [crop for image, rng in zip(images, rngs, strict=False) for crop in cut_crops(image.load(scale), scale, rng)]


def load_normal_places(images: Iterable[StoredImage], scale: WorkingScale) -> list[list[Sample]]:
    """Return for each defect image its crops without a defect pixel (see `cut_normal_places`).

    Empty if one tile holds an image.

    Raises:
        InputError: a file cannot be read.
    """
    if scale.crops == 1:
        return []
    rngs = (np.random.default_rng([number, 1]) for number in itertools.count())
    return [cut_normal_places(image.load(scale), scale, rng) for image, rng in zip(images, rngs, strict=False)]


def predict_tiled(model: ScoreMapModel, image: NDArray[np.uint8], scale: WorkingScale) -> NDArray[np.float32]:
    """Return the score map float32 `[h,w]` of an image uint8 `[h,w,3]` at the working resolution.

    The map is the weighted mean of the maps of all tiles. The weight of a pixel falls linearly with its distance to the
    centre of the tile, along both axes, because a network sees little around a pixel at the border of its tile.
    """
    height, width = image.shape[:2]
    padded = _pad(Sample(image, np.zeros((height, width), bool)), scale.tile).image
    tile = scale.tile
    ramp = (np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 1).astype(np.float32) / (tile // 2)
    weight = ramp[:, None] * ramp[None]
    tops, lefts = (tile_starts(n, tile, scale.overlap) for n in padded.shape[:2])
    total = np.zeros(padded.shape[:2], np.float32)
    places = [(top, left) for top in tops for left in lefts]
    for start in range(0, len(places), TILES_PER_BATCH):
        batch = places[start : start + TILES_PER_BATCH]
        maps = model.predict(np.stack([padded[top : top + tile, left : left + tile] for top, left in batch]))
        for (top, left), score_map in zip(batch, maps, strict=True):
            total[top : top + tile, left : left + tile] += score_map * weight
    # The weights of all tiles are a product of rows and columns, as the places are a grid.
    rows, columns = (np.zeros(n, np.float32) for n in padded.shape[:2])
    for sums, starts in ((rows, tops), (columns, lefts)):
        for start in starts:
            sums[start : start + tile] += ramp
    total /= rows[:, None]
    total /= columns[None]
    return total[:height, :width]


def evaluate_tiled(
    model: ScoreMapModel,
    samples: Sequence[Sample],
    scale: WorkingScale,
    image_score: str = "max_of_mean",
    observe: Observer | None = None,
) -> Evaluation:
    """Compute the scores of a model on stitched score maps, one image after the other.

    Args:
        model: segmenter or detector.
        samples: test images at the working resolution; each is read when it is scored, and then released.
        scale: the working resolution.
        image_score: see `evaluate_segmenter`; the window is that of a tile.
        observe: called with each score map, before it is reduced, and its sample.

    Returns:
        The evaluation as that of `evaluate_segmenter`. Pixels are counted in a million bins (see `metrics.binning`), so
        each score errs by at most 1e-3. `maps` are reduced to a longer side of `SHOWN_SIDE`.

    Raises:
        InputError: no samples.
    """
    if not samples:
        raise InputError("segment: no test image; expected at least one")
    window = score_window(scale.tile, image_score)
    counts: list[_Counts] = []
    images: list[ImageCounts] = []
    shown: list[NDArray[np.float32]] = []
    for sample in samples:
        score_map = predict_tiled(model, sample.image, scale)
        if observe is not None:
            observe(score_map, sample)
        image = count_image(score_map, sample.mask, window, IOU_THRESHOLD)
        counts.append(_count_strips(score_map, sample.mask, image.area))
        images.append(image._replace(area=np.empty(0, np.float32)))
        shown.append(_reduce(score_map))
    positive, negative, overlap = _sum_counts(counts)
    exact = scores_from_curves(
        binned_curve(positive.astype(np.int64), negative.astype(np.int64), overlap),
        ranking_curve([image.score for image in images], [image.is_defective for image in images]),
        sum(image.intersection for image in images),
        sum(image.union for image in images),
        PRO_FPR_LIMIT,
    )
    scores = {k: round(v, 6) if isinstance(v, float) else v for k, v in exact.items()}
    defects = sum(image.is_defective for image in images)
    scores["protocol"] = {
        "defect_images": defects,
        "normal_images": len(images) - defects,
        "pro_fpr_limit": PRO_FPR_LIMIT,
        "iou_threshold": IOU_THRESHOLD,
        "image_score": describe_image_score(window),
        "pixel_curve": f"binned, {BINS} bins",
        **scale.protocol(),
    }
    return Evaluation(scores, shown, _image_tables(counts, images, positive, positive + negative))


def _count_strips(score_map: NDArray[np.float32], mask: NDArray[np.bool_], area: NDArray[np.float32]) -> _Counts:
    """Return the counts of one image; `area` is that of the region of each defective pixel in reading order."""
    sums = [np.zeros(BINS) for _ in range(3)]
    done = 0
    for top in range(0, len(mask), _STRIP):
        inside = mask[top : top + _STRIP]
        defective = int(np.count_nonzero(inside))
        weight = 1.0 / area[done : done + defective].astype(np.float64)
        part = count_bins(score_map[top : top + _STRIP], inside, weight)
        for total, values in zip(sums, part[1:], strict=True):
            total[part.bins] += values
        done += defective
    filled = np.flatnonzero(sums[0] + sums[1])
    return _Counts(filled, *(total[filled] for total in sums))


def _sum_counts(counts: Sequence[_Counts]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return positive, negative and overlap of all images together, each `[BINS]`."""
    positive, negative, overlap = (np.zeros(BINS) for _ in range(3))
    for image in counts:
        positive[image.bins] += image.positive
        negative[image.bins] += image.negative
        overlap[image.bins] += image.overlap
    return positive, negative, overlap


def _image_tables(
    counts: Sequence[_Counts],
    images: Sequence[ImageCounts],
    positive: NDArray[np.float64],
    pixels: NDArray[np.float64],
) -> ImageTables:
    """Return the tables of the bootstrap: the bins of each image, united to about a thousand bins of falling score.

    Half of the edges are quantiles of the scores of defective pixels, the other half of all scores.
    """
    edges = np.unique(np.concatenate([_quantile_bins(total, TABLE_BINS // 2) for total in (positive, pixels)]))
    bins = len(edges) + 1
    columns: dict[str, list[NDArray[np.float64]]] = {"positive": [], "negative": [], "overlap": []}
    for image in counts:
        of_bin = len(edges) - np.searchsorted(edges, image.bins, "right")
        for name, rows in columns.items():
            rows.append(np.bincount(of_bin, getattr(image, name), bins).astype(np.float64))
    return ImageTables(
        *(np.array(rows) for rows in columns.values()),
        regions=np.array([image.regions for image in images], np.float64),
        both=np.array([image.intersection for image in images], np.float64),
        either=np.array([image.union for image in images], np.float64),
        score=np.array([image.score for image in images], np.float64),
        label=np.array([image.is_defective for image in images]),
    )


def _quantile_bins(total: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the bins at `count` evenly spaced quantiles of the pixels counted in `total`; empty without a pixel."""
    cumulative = np.cumsum(total)
    if not cumulative[-1]:
        return np.empty(0, np.int64)
    found = np.searchsorted(cumulative, np.linspace(0, 1, count) * cumulative[-1], "left")
    return np.minimum(found, len(total) - 1)


def _reduce(score_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a score map with a longer side of at most `SHOWN_SIDE` pixels."""
    height, width = score_map.shape
    factor = min(1.0, SHOWN_SIDE / max(height, width))
    if factor == 1:
        return score_map.copy()
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(score_map).resize(size, Image.Resampling.BOX))


def _pad(sample: Sample, tile: int) -> Sample:
    """Return the sample, reflected at its lower and right border up to the size of a tile."""
    rows, columns = (max(0, tile - n) for n in sample.mask.shape)
    if not rows and not columns:
        return sample
    border = ((0, rows), (0, columns))
    return Sample(
        np.pad(sample.image, (*border, (0, 0)), mode="symmetric"), np.pad(sample.mask, border, mode="symmetric")
    )


def _crop(sample: Sample, top: int, left: int, tile: int) -> Sample:
    top, left = (int(np.clip(p, 0, n - tile)) for p, n in zip((top, left), sample.mask.shape, strict=True))
    area = slice(top, top + tile), slice(left, left + tile)
    return Sample(sample.image[area].copy(), sample.mask[area].copy())
