"""Geometry of a placement: transforms of points, masks and images, and the comparison of surroundings."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.data.foreground import reduce_image
from defect_core.data.masks import bounding_box

Matrix = NDArray[np.float64]
"""float64 [2, 3], maps source (x, y, 1) to target (x, y)."""

# The values below have no published source. They were set by hand.
_CONTEXT_SIDE = 96  # pixels of the longer side of the reduced image on which surroundings are compared
_CONTEXT_BLUR = 0.8  # standard deviation in reduced pixels
_MAX_POINTS = 240  # points of a mask, and of the ring around it, that are compared
_RING_GAP = 2  # pixels between mask and ring, which the blurred edge of the defect may occupy
_RING_FRACTION, _MIN_RING_WIDTH = 0.04, 3  # width of the ring: a fraction of the longer side, at least this many pixels
_OUTSIDE_DIFFERENCE = 60.0  # grey levels assigned to a ring point outside the target
_TEMPERATURE = 3.0  # grey levels of context difference that make a candidate e times less likely
_MASK_LEVEL = 115  # of 255; slightly below one half, so that thin masks keep their pixels
_ROUNDING = 1e-6  # pixels


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


def choose_by_context(valid: list[tuple[float, Matrix]], rng: np.random.Generator) -> Matrix:
    """Return a matrix at random, with the probability softmax(-difference / temperature)."""
    differences = np.array([difference for difference, _ in valid])
    weights = np.exp(-(differences - differences.min()) / _TEMPERATURE)
    return valid[int(rng.choice(len(valid), p=weights / weights.sum()))][1]


class Context:
    """A reduced, slightly blurred image whose colours are read at coordinates of the full size."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        """Reduce the image uint8 [H, W, 3]."""
        small = reduce_image(image, _CONTEXT_SIDE, min_side=1)
        self.pixels = ndimage.gaussian_filter(small, (_CONTEXT_BLUR, _CONTEXT_BLUR, 0), truncate=2.5)
        self.ratio = np.array(small.shape[1::-1]) / np.array(image.shape[1::-1])

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the colours float32 [N, 3] at points (x, y) [N, 2]."""
        return lookup(self.pixels, points * self.ratio)


def similarity(
    angle: float, zoom: float, mirrored: bool, origin: NDArray[np.float64], to: NDArray[np.float64]
) -> Matrix:
    """Return the matrix [2, 3] that mirrors x, then rotates and scales, and maps (x, y) `origin` to `to`."""
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    return np.column_stack([linear, to - linear @ origin])


def move_example(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], target: NDArray[np.uint8], matrix: Matrix
) -> Placement:
    """Return an example moved by a matrix.

    Args:
        image: uint8 [H, W, 3], image of the example.
        mask: bool [H, W], its mask, not empty.
        target: uint8 [H', W', 3], image that the example is moved onto.
        matrix: float64 [2, 3].
    """
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
        x, y = np.clip(np.floor(transform_points(matrix, points)).astype(int), 0, [width - 1, height - 1]).T
        moved = np.zeros((height, width), dtype=bool)
        moved[y, x] = True
    warped[~valid] = target[~valid]
    return Placement(moved, warped, valid, matrix)


def sample_points(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def outline_points(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the pixel corners (x, y) at the ends of every row of the mask; they include its convex hull."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    x = np.concatenate([first, last, first, last])
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    return np.stack([x, y], axis=1).astype(np.float64)


def context_difference(
    colours: NDArray[np.float32], target: Context, points: NDArray[np.float64], size: tuple[int, ...]
) -> float:
    """Return the mean absolute difference over the ring in grey levels."""
    if not len(points):
        return 0.0
    within = ((points >= 0) & (points < np.array(size[::-1]))).all(axis=1)
    difference = np.abs(target.at(points) - colours).mean(axis=1)
    return float(np.where(within, difference, _OUTSIDE_DIFFERENCE).mean())


def mask_middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the middle (x, y) of the bounding box of a mask bool [H, W]."""
    top, left, bottom, right = bounding_box(mask)
    return np.array([(left + right) / 2, (top + bottom) / 2])


def transform_points(matrix: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (x, y) [N, 2] moved by a matrix."""
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def lookup(values: NDArray, points: NDArray[np.float64]) -> NDArray:
    """Return the values at (x, y); points outside are moved to the border."""
    x = np.clip(points[:, 0].astype(int), 0, values.shape[1] - 1)
    y = np.clip(points[:, 1].astype(int), 0, values.shape[0] - 1)
    return values[y, x]


def is_within(points: NDArray[np.float64], size: tuple[int, ...]) -> bool:
    """Return whether all points (x, y) are inside an image of size (H, W), up to rounding."""
    return bool(((points >= -_ROUNDING) & (points <= np.array(size[::-1]) + _ROUNDING)).all())
