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

from defect_core.data.foreground import Pose, estimate_pose, find_foreground, has_texture_direction
from defect_core.data.masks import bounding_box, touches_border
from defect_core.data.placement_geometry import (
    Context,
    Matrix,
    Placement,
    choose_by_context,
    context_difference,
    is_within,
    lookup,
    mask_middle,
    move_example,
    outline_points,
    sample_points,
    similarity,
    transform_points,
)

# The values below have no published source. They were set by hand.
_SAME_ASPECT = 0.02  # relative difference of aspect ratios below which two sizes show the same view
_MIRROR_PROBABILITY = 0.5
_POSE_PROBABILITY = 0.6  # of following the pose of the product, where both images show one
_MIN_ELONGATION = 1.3  # below it the long axis of a product is not reliable
_POSE_JITTER, _POSE_SCALE = 0.3, 0.2  # factors of rotation and log scale where a candidate follows the pose
_QUARTER_TURN_PROBABILITY = 0.7  # of a random quarter turn on a texture
_DIRECTION_JITTER = 0.3  # factor of the rotation on a texture that has a direction
_FIT_FRACTION = 0.9  # of the target that a mask which fits nowhere may span


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
    inside, ring = sample_points(source_mask, rng)
    outline = outline_points(source_mask)
    required = config.min_foreground * source_on[source_mask].mean()
    target_context, ring_colours = Context(target_image), Context(source_image).at(ring)
    if touches_border(source_mask):
        candidates = _border_candidates(source_mask, size, rng, config)
    else:
        has_direction = has_texture_direction(target_image, target_on)
        candidates = _candidates(source_mask, source_on, target_on, rng, config, has_direction)
    valid: list[tuple[float, Matrix]] = []
    partly_on_product: list[tuple[float, Matrix]] = []
    for matrix in candidates:
        if not is_within(transform_points(matrix, outline), size):
            continue
        on = lookup(target_on, transform_points(matrix, inside)).mean()
        # `required` is 0 if the mask of the example itself is beside its product.
        if on < required or on == 0:
            partly_on_product.append((on, matrix))
        else:
            difference = context_difference(ring_colours, target_context, transform_points(matrix, ring), size)
            valid.append((difference, matrix))
    if valid:
        chosen = choose_by_context(valid, rng)
    elif partly_on_product:
        chosen = max(partly_on_product, key=lambda entry: entry[0])[1]
    else:
        chosen = _shrink_to_fit(outline, size, target_on)
    return move_example(source_image, source_mask, target_image, chosen)


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
    middle = mask_middle(mask)
    yield similarity(0, base, False, middle, middle * ratio)
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
            yield similarity(angle, zoom, mirrored, poses[0].centre, poses[1].centre)
            continue
        if poses is not None:
            turn = rng.uniform(0, 2 * np.pi)
        else:
            turn = np.pi / 2 * rng.integers(4) * (kind < _QUARTER_TURN_PROBABILITY)
        if has_direction:  # A patch across the direction of the texture would be a defect in itself.
            turn, jitter = 2 * turn, _DIRECTION_JITTER * jitter
        position = int(positions[rng.integers(len(positions))])
        to = np.array([position % size[1] + 0.5, position // size[1] + 0.5])
        yield similarity(turn + jitter, zoom, mirrored, middle, to)


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


def _shrink_to_fit(outline: NDArray[np.float64], size: tuple[int, ...], target_on: NDArray[np.bool_]) -> Matrix:
    """Return the matrix that moves the mask to the middle of the product, shrunk until the border does not cut it."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    room = np.array(size[::-1], dtype=np.float64)
    zoom = min(1.0, float((_FIT_FRACTION * room / np.maximum(high - low, 1)).min()))
    half_extent = zoom * (high - low) / 2
    to = np.clip(mask_middle(target_on), half_extent, room - half_extent)
    return similarity(0, zoom, False, (low + high) / 2, to)
