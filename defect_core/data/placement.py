"""Placement of a defect: moves the mask of a real example to a plausible position on a normal image.

Candidate 0 is the position in the source. The others follow the pose of the product, or go to any point of it. A
valid candidate is not cut by the border and has enough of the mask on the product. One is chosen at random, with a
higher probability for more similar surroundings. If none is valid, the candidate with the largest part on the product
is used. If the border cuts all, the mask is shrunk to fit.

A mask that is cut by the border of its image stays at that border or moves to the opposite one. Elsewhere its
straight edge would be implausible. Its height and width scale with those of the frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.data.foreground import Pose, estimate_pose, find_foreground, has_texture_direction, reduce_image
from defect_core.data.masks import bounding_box, touches_border

Matrix = NDArray[np.float64]
"""float64 [2, 3], maps source (x, y, 1) to target (x, y)."""

# The values below have no published source. They were set by hand.
_CONTEXT_SIDE = 96  # pixels of the longer side of the reduced image on which surroundings are compared
_CONTEXT_BLUR = 0.8  # standard deviation in reduced pixels
_MAX_POINTS = 240  # points of a mask, and of the ring around it, that are compared
_RING_GAP = 2  # pixels between mask and ring, which the blurred edge of the defect may occupy
_RING_FRACTION, _MIN_RING_WIDTH = 0.04, 3  # width of the ring: a fraction of the longer side, at least this many pixels
_ROUNDING = 1e-6  # pixels
_OUTSIDE_DIFFERENCE = 60.0  # grey levels assigned to a ring point outside the target
_TEMPERATURE = 3.0  # grey levels of context difference that make a candidate e times less likely
_SAME_ASPECT = 0.02  # relative difference of aspect ratios below which two sizes show the same view
_MIRROR_PROBABILITY = 0.5
_POSE_PROBABILITY = 0.6  # of following the pose of the product, where both images show one
_MIN_ELONGATION = 1.3  # below it the long axis of a product is not reliable
_POSE_JITTER, _POSE_SCALE = 0.3, 0.2  # factors of rotation and log scale where a candidate follows the pose
_QUARTER_TURN_PROBABILITY = 0.7  # of a random quarter turn on a texture
_DIRECTION_JITTER = 0.3  # factor of the rotation on a texture that has a direction
_FIT_FRACTION = 0.9  # of the target that a mask which fits nowhere may span
_MASK_LEVEL = 115  # of 255; slightly below one half, so that thin masks keep their pixels


@dataclass(frozen=True)
class PlacementConfig:
    """Settings of `place_defect`.

    Attributes:
        candidates: number of transforms that are tried.
        min_foreground: fraction, 0 to 1. The part of the mask that must be on the target's product, relative to the
            part that is on the source's product.
        scale: smallest and largest relative size.
        rotation: largest deviation in degrees from the pose, or from a quarter turn. On a texture that has a
            direction it is the deviation from a half turn, and smaller.
        flip: whether candidates may be mirrored.
    """

    candidates: int = 48
    min_foreground: float = 0.85
    scale: tuple[float, float] = (0.8, 1.2)
    rotation: float = 10.0
    flip: bool = True


@dataclass(frozen=True)
class Placement:
    """A source example moved onto a target image of size [H, W].

    Attributes:
        mask: bool [H, W], never empty.
        warped: uint8 [H, W, 3], the source image moved by `matrix`; the target where the source has no pixels.
        valid: bool [H, W], True where the source has pixels.
        matrix: float64 [2, 3], maps source (x, y, 1) to target (x, y); pixel centres are at halves.
    """

    mask: NDArray[np.bool_]
    warped: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    matrix: Matrix


def place_defect(
    source_image: NDArray[np.uint8],
    source_mask: NDArray[np.bool_],
    target_image: NDArray[np.uint8],
    rng: np.random.Generator,
    config: PlacementConfig | None = None,
    source_foreground: NDArray[np.bool_] | None = None,
    target_foreground: NDArray[np.bool_] | None = None,
) -> Placement:
    """Return a defect moved onto the target image by a random transform; the module docstring describes the choice.

    Args:
        source_image: uint8 [H, W, 3]; may differ in size from the target. The same shape in another size counts as
            another resolution of the same view, another shape as a crop at the same resolution.
        source_mask: bool [H, W], not empty.
        target_image: uint8 [H', W', 3].
        rng: source of all randomness.
        config: settings; None for the defaults.
        source_foreground: `find_foreground(source_image)`, if the caller already has it.
        target_foreground: `find_foreground(target_image)`, if the caller already has it.

    Raises:
        ValueError: the mask is empty or has another size than its image.
    """
    if source_mask.shape != source_image.shape[:2]:
        raise ValueError(f"mask is {source_mask.shape}, its image {source_image.shape[:2]}; expected the same size")
    config = config or PlacementConfig()
    source_on = find_foreground(source_image) if source_foreground is None else source_foreground
    target_on = find_foreground(target_image) if target_foreground is None else target_foreground
    size = target_image.shape[:2]
    inside, ring = _sample_points(source_mask, rng)
    outline = _outline_points(source_mask)
    required = config.min_foreground * source_on[source_mask].mean()
    target_context, ring_colours = _Context(target_image), _Context(source_image).at(ring)
    if touches_border(source_mask):
        candidates = _border_candidates(source_mask, size, rng, config)
    else:
        has_direction = has_texture_direction(target_image, target_on)
        candidates = _candidates(source_mask, source_on, target_on, rng, config, has_direction)
    valid: list[tuple[float, Matrix]] = []
    partly_on_product: list[tuple[float, Matrix]] = []
    for matrix in candidates:
        moved = _transform(matrix, outline)
        if not ((moved >= -_ROUNDING) & (moved <= np.array(size[::-1]) + _ROUNDING)).all():
            continue
        on = _lookup(target_on, _transform(matrix, inside)).mean()
        # `required` is 0 if the mask of the example itself is beside its product.
        if on < required or on == 0:
            partly_on_product.append((on, matrix))
        else:
            difference = _context_difference(ring_colours, target_context, _transform(matrix, ring), size)
            valid.append((difference, matrix))
    if valid:
        chosen = _choose_by_context(valid, rng)
    elif partly_on_product:
        chosen = max(partly_on_product, key=lambda entry: entry[0])[1]
    else:
        chosen = _shrink_to_fit(outline, size, target_on)
    return _warp(source_image, source_mask, target_image, chosen)


def _choose_by_context(valid: list[tuple[float, Matrix]], rng: np.random.Generator) -> Matrix:
    """Return a matrix at random, with the probability softmax(-difference / temperature)."""
    differences = np.array([difference for difference, _ in valid])
    weights = np.exp(-(differences - differences.min()) / _TEMPERATURE)
    return valid[int(rng.choice(len(valid), p=weights / weights.sum()))][1]


class _Context:
    """A reduced, slightly blurred image whose colours are read at coordinates of the full size."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        small = reduce_image(image, _CONTEXT_SIDE, min_side=1)
        self.pixels = ndimage.gaussian_filter(small, (_CONTEXT_BLUR, _CONTEXT_BLUR, 0), truncate=2.5)
        self.ratio = np.array(small.shape[1::-1]) / np.array(image.shape[1::-1])

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        return _lookup(self.pixels, points * self.ratio)


def _candidates(
    mask: NDArray[np.bool_],
    source_on: NDArray[np.bool_],
    target_on: NDArray[np.bool_],
    rng: np.random.Generator,
    config: PlacementConfig,
    has_direction: bool,
) -> Iterator[Matrix]:
    """Yield matrices for a mask that the border of its image does not cut."""
    (height, width), size = mask.shape, target_on.shape
    ratio = np.array([size[1] / width, size[0] / height])
    base = float(ratio.mean()) if abs(ratio[0] / ratio[1] - 1) < _SAME_ASPECT else 1.0
    middle = _middle(mask)
    yield _similarity(0, base, False, middle, middle * ratio)
    shows_object = not (source_on.all() or target_on.all())
    poses = (estimate_pose(source_on), estimate_pose(target_on)) if shows_object else None
    # A texture has no background, so every pixel of the frame is possible.
    positions = np.flatnonzero(target_on)
    log_scale = np.log(config.scale)
    for _ in range(config.candidates - 1):
        mirrored = config.flip and rng.random() < _MIRROR_PROBABILITY
        zoom = base * np.exp(rng.uniform(*log_scale))
        jitter = np.deg2rad(rng.uniform(-config.rotation, config.rotation))
        kind = rng.random()
        if poses is not None and kind < _POSE_PROBABILITY:
            angle = _pose_angle(*poses, mirrored, jitter, rng)
            zoom = base * np.exp(rng.uniform(*(_POSE_SCALE * log_scale)))
            yield _similarity(angle, zoom, mirrored, poses[0].centre, poses[1].centre)
            continue
        if poses is not None:
            turn = rng.uniform(0, 2 * np.pi)
        else:
            turn = np.pi / 2 * rng.integers(4) * (kind < _QUARTER_TURN_PROBABILITY)
        if has_direction:  # A patch across the direction of the texture would be a defect in itself.
            turn, jitter = 2 * turn, _DIRECTION_JITTER * jitter
        position = int(positions[rng.integers(len(positions))])
        to = np.array([position % size[1] + 0.5, position // size[1] + 0.5])
        yield _similarity(turn + jitter, zoom, mirrored, middle, to)


def _pose_angle(source: Pose, target: Pose, mirrored: bool, jitter: float, rng: np.random.Generator) -> float:
    """Return an angle that aligns the long axes of two products, or any angle if one has no clear long axis."""
    if min(source.elongation, target.elongation) > _MIN_ELONGATION:
        turn = target.angle - (np.pi - source.angle if mirrored else source.angle)
        return turn + np.pi * rng.integers(2) + jitter * _POSE_JITTER
    return rng.uniform(0, 2 * np.pi)


def _border_candidates(
    mask: NDArray[np.bool_], size: tuple[int, ...], rng: np.random.Generator, config: PlacementConfig
) -> Iterator[Matrix]:
    """Yield matrices for a mask that the border of its image cuts.

    The first maps frame to frame. The others treat each axis separately: the mask is scaled from the border that
    cuts it, shifted freely if none does, and mirrored.
    """
    top, left, bottom, right = bounding_box(mask)
    frame = np.array(mask.shape[::-1], dtype=np.float64)
    ratio = np.array(size[::-1]) / frame
    yield np.column_stack([np.diag(ratio), np.zeros(2)])
    for _ in range(config.candidates - 1):
        zoom = np.exp(rng.uniform(*np.log(config.scale)))
        factors, shifts = np.ones(2), np.zeros(2)
        for axis, (low, high) in enumerate(((left, right), (top, bottom))):
            at_start, at_end = low == 0, high == frame[axis]
            if not (at_start and at_end):
                factors[axis] = min(zoom, frame[axis] / (high - low))
                # Rounding may make the remaining room negative.
                room = max(0.0, frame[axis] - factors[axis] * (high - low))
                start = 0.0 if at_start else room if at_end else rng.uniform(0, room)
                shifts[axis] = start - factors[axis] * low
            if config.flip and rng.random() < _MIRROR_PROBABILITY:
                factors[axis], shifts[axis] = -factors[axis], frame[axis] - shifts[axis]
        yield np.column_stack([np.diag(ratio * factors), ratio * shifts])


def _similarity(
    angle: float, zoom: float, mirrored: bool, origin: NDArray[np.float64], to: NDArray[np.float64]
) -> Matrix:
    """Return the matrix [2, 3] that mirrors x, then rotates and scales, and maps (x, y) `origin` to `to`."""
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    return np.column_stack([linear, to - linear @ origin])


def _shrink_to_fit(outline: NDArray[np.float64], size: tuple[int, ...], target_on: NDArray[np.bool_]) -> Matrix:
    """Return the matrix that moves the mask to the middle of the product, shrunk until the border does not cut it."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    room = np.array(size[::-1], dtype=np.float64)
    zoom = min(1.0, float((_FIT_FRACTION * room / np.maximum(high - low, 1)).min()))
    half_extent = zoom * (high - low) / 2
    to = np.clip(_middle(target_on), half_extent, room - half_extent)
    return _similarity(0, zoom, False, (low + high) / 2, to)


def _warp(image: NDArray[np.uint8], mask: NDArray[np.bool_], target: NDArray[np.uint8], matrix: Matrix) -> Placement:
    height, width = target.shape[:2]
    shrink = int(1 / max(np.sqrt(abs(np.linalg.det(matrix[:, :2]))), 1e-6))
    full = Image.fromarray(image)
    # The bilinear filter aliases when it shrinks, so the image is averaged over whole cells first.
    reduced = full.reduce(shrink) if shrink > 1 else full
    # `reduce` pads the image to whole cells, so the cell size is exactly `shrink`.
    cells = np.diag([1 / shrink, 1 / shrink]) if shrink > 1 else np.eye(2)
    inverse = np.linalg.inv(matrix[:, :2])
    offset = -inverse @ matrix[:, 2]
    full_affine = (*inverse[0], offset[0], *inverse[1], offset[1])
    small_inverse, small_offset = cells @ inverse, cells @ offset
    small_affine = (*small_inverse[0], small_offset[0], *small_inverse[1], small_offset[1])
    affine = Image.Transform.AFFINE
    warped = np.array(reduced.transform((width, height), affine, small_affine, Image.Resampling.BILINEAR))
    ones = Image.fromarray(np.full(mask.shape, 255, dtype=np.uint8))
    valid = np.asarray(ones.transform((width, height), affine, full_affine, Image.Resampling.NEAREST)) > 0
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    moved = np.asarray(levels.transform((width, height), affine, full_affine, Image.Resampling.BILINEAR)) >= _MASK_LEVEL
    moved = moved & valid
    if not moved.any():
        # Shrinking removed a defect of few pixels, so its pixels are moved one by one.
        points = np.argwhere(mask)[:, ::-1].astype(np.float64) + 0.5
        x, y = np.clip(np.floor(_transform(matrix, points)).astype(int), 0, [width - 1, height - 1]).T
        moved = np.zeros((height, width), dtype=bool)
        moved[y, x] = True
    warped[~valid] = target[~valid]
    return Placement(moved, warped, valid, matrix)


def _sample_points(
    mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return up to `_MAX_POINTS` points (x, y) inside the mask, and as many in the ring around it."""
    top, left, bottom, right = bounding_box(mask)
    width = max(_MIN_RING_WIDTH, round(_RING_FRACTION * max(mask.shape)))
    pad = width + _RING_GAP + 1
    low = (max(0, top - pad), max(0, left - pad))
    crop = mask[low[0] : bottom + pad, low[1] : right + pad]
    near = np.asarray(ndimage.maximum_filter(crop, 2 * _RING_GAP + 1), bool)
    ring = np.asarray(ndimage.maximum_filter(crop, 2 * (width + _RING_GAP) + 1), bool) & ~near
    samples = []
    for part in (crop, ring):
        points = np.argwhere(part) + low
        if len(points) > _MAX_POINTS:
            points = points[rng.choice(len(points), _MAX_POINTS, replace=False)]
        samples.append(points[:, ::-1] + 0.5)
    return samples[0], samples[1]


def _outline_points(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the pixel corners (x, y) at the ends of every row of the mask; they include its convex hull."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    x = np.concatenate([first, last, first, last])
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    return np.stack([x, y], axis=1).astype(np.float64)


def _context_difference(
    colours: NDArray[np.float32], target: _Context, points: NDArray[np.float64], size: tuple[int, ...]
) -> float:
    """Return the mean absolute difference over the ring in grey levels."""
    if not len(points):
        return 0.0
    within = ((points >= 0) & (points < np.array(size[::-1]))).all(axis=1)
    difference = np.abs(target.at(points) - colours).mean(axis=1)
    return float(np.where(within, difference, _OUTSIDE_DIFFERENCE).mean())


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    top, left, bottom, right = bounding_box(mask)
    return np.array([(left + right) / 2, (top + bottom) / 2])


def _transform(matrix: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _lookup(values: NDArray, points: NDArray[np.float64]) -> NDArray:
    """Return the values at (x, y); points outside are moved to the border."""
    x = np.clip(points[:, 0].astype(int), 0, values.shape[1] - 1)
    y = np.clip(points[:, 1].astype(int), 0, values.shape[0] - 1)
    return values[y, x]
