"""Where on a normal image a defect may lie: a real example's mask, moved to a place that suits it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.data.masks import bounding_box, touches_border

_THUMB = 96
_GRAIN_SIDE = 256
_GRAIN = 0.25  # coherence of the gradients from which a texture has a grain: brushed metal does, a weave does not
_POINTS = 240
_EDGE = 1e-6  # pixels; rounding
_OUTSIDE = 60.0  # grey levels that a ring point outside the target counts as
_TEMPERATURE = 3.0  # grey levels of context difference that make a place e times less likely
_MIN_STEP = 18.0  # grey levels between ground and product below which nothing is decided
_MIN_RATIO = 3.0  # the same in standard deviations of the ground
_MIN_BORDER = 0.7  # part of the border that has to be ground
_MIN_SHARP = 6.0  # times steeper the outline has to be than the ground: uneven light on a texture has no outline
_PARTS, _MIN_IN_PARTS = 5, 0.85  # a product lies in a few connected parts


@dataclass(frozen=True)
class Placement:
    """A source example moved onto a target image of size [H, W].

    `mask` bool [H, W], never empty. `warped` uint8 [H, W, 3], the source image moved the same way; `valid` bool
    [H, W] says where it has pixels (elsewhere it is the target). `matrix` float64 [2, 3] takes source (x, y, 1) to
    target (x, y), pixel centres at halves.
    """

    mask: NDArray[np.bool_]
    warped: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    matrix: NDArray[np.float64]


def foreground(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [H, W], True where the product is; all True for textures that fill the frame, and whenever unsure.

    The ground is what looks like the border of the image: Otsu's threshold (1979) on the colour distance to the
    border's median, on a reduced image. It is believed only when most of the border is ground, the product clearly
    differs from it, at its outline too, and lies in a few connected parts.
    """
    height, width = image.shape[:2]
    everything = np.ones((height, width), dtype=bool)
    factor = max(1.0, max(height, width) / _THUMB)
    size = (max(8, round(width / factor)), max(8, round(height / factor)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=np.float32)
    small = ndimage.gaussian_filter(small, (1.2, 1.2, 0), truncate=2.5)
    edge = np.ones(small.shape[:2], dtype=bool)
    edge[2:-2, 2:-2] = False
    distance = np.sqrt(((small - np.median(small[edge], axis=0)) ** 2).sum(axis=2) / 3)
    threshold = _otsu(distance)
    product = distance > threshold
    fraction = product.mean()
    if not 0.02 < fraction < 0.92:
        return everything
    ground_level, ground_spread = distance[~product].mean(), distance[~product].std()
    step = distance[product].mean() - ground_level
    if step < _MIN_STEP or step < _MIN_RATIO * ground_spread or (~product[edge]).mean() < _MIN_BORDER:
        return everything
    slope = np.hypot(*np.gradient(distance))
    outline = ndimage.binary_dilation(product) & ~ndimage.binary_erosion(product, border_value=1)
    away = ~ndimage.binary_dilation(product, iterations=4)
    if away.any() and slope[outline].mean() < _MIN_SHARP * slope[away].mean():
        return everything
    product = ndimage.binary_closing(product, iterations=1) | product
    labels, count = ndimage.label(product)
    areas = np.sort(np.bincount(labels.ravel(), minlength=count + 1)[1:])[::-1]
    if areas[:_PARTS].sum() < _MIN_IN_PARTS * areas.sum():
        return everything
    product = _fill_small_holes(product, 0.004 * product.size)
    large = Image.fromarray(product.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large) > 0.5


def has_texture_direction(image: NDArray[np.uint8], product: NDArray[np.bool_] | None = None) -> bool:
    """Whether the image is all texture and that runs in one direction, as brushed metal does.

    An image that shows ground beside the product (`product`: `foreground(image)` where the caller has it) has none.
    The coherence of the structure tensor summed over the image, (λ1 − λ2) / (λ1 + λ2), without the strongest tenth of
    the gradients, which are outlines and defects.
    """
    if not (foreground(image) if product is None else product).all():
        return False
    factor = max(1.0, max(image.shape[:2]) / _GRAIN_SIDE)
    size = (max(8, round(image.shape[1] / factor)), max(8, round(image.shape[0] / factor)))
    gray = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float32).mean(2)
    down, across = (ndimage.gaussian_filter(gray, 1, order=order) for order in ((1, 0), (0, 1)))
    steep = np.hypot(down, across)
    kept = steep <= np.quantile(steep, 0.9)
    a, b, c = ((one * other)[kept].sum() for one, other in ((across, across), (across, down), (down, down)))
    return bool(np.hypot(a - c, 2 * b) > _GRAIN * (a + c))


def place(
    source_image: NDArray[np.uint8],
    source_mask: NDArray[np.bool_],
    target_image: NDArray[np.uint8],
    rng: np.random.Generator,
    tries: int = 48,
    min_foreground: float = 0.85,
    scale: tuple[float, float] = (0.8, 1.2),
    rotation: float = 10.0,
    flip: bool = True,
    source_foreground: NDArray[np.bool_] | None = None,
    target_foreground: NDArray[np.bool_] | None = None,
) -> Placement:
    """Draw a similarity transform that lays the source's defect on the target where it could have happened.

    Candidate 0 is the same place as in the source; others follow the product's pose (centre and long axis of the
    foreground) or go anywhere on it. Kept are those where at least `min_foreground` times the part of the mask that
    lay on its own product lies on the target's, and at least some of it, and that the border does not cut. One of them
    is drawn, likelier the more the ring around the mask looks alike in both images. Where none is kept, the least bad
    one is taken, shrunk until it fits.

    A mask that the border of its own image cuts keeps to that border, or to the opposite one: in the middle of an image
    its straight edge would be no defect's. It is scaled with the frame then, height and width each by its own ratio.

    Args:
        source_image: uint8 [H, W, 3]; may differ in size from the target. Equal shapes of different size
            count as other resolutions of the same view, unequal ones as crops of the same resolution.
        source_mask: bool [H, W], not empty.
        target_image: uint8 [H', W', 3].
        rng: all randomness.
        tries: candidates drawn.
        min_foreground: see above, 0 to 1.
        scale: least and greatest relative size.
        rotation: jitter in degrees on top of the pose or of quarter turns; of half turns, and less, on a texture that
            has a grain.
        flip: whether mirrored candidates are drawn.
        source_foreground: `foreground(source_image)` where the caller has it; likewise `target_foreground`.

    Raises:
        ValueError: an empty mask, or one of another size than its image.
    """
    if source_mask.shape != source_image.shape[:2]:
        raise ValueError(f"mask is {source_mask.shape}, its image {source_image.shape[:2]}; expected the same size")
    source_on = foreground(source_image) if source_foreground is None else source_foreground
    target_on = foreground(target_image) if target_foreground is None else target_foreground
    size = target_image.shape[:2]
    inside, ring = _sample_points(source_mask, rng)
    outline = _outline(source_mask)
    wanted = min_foreground * source_on[source_mask].mean()
    source_small, target_small = _Thumb(source_image), _Thumb(target_image)
    ring_colours = source_small.at(ring)

    kept: list[tuple[float, NDArray[np.float64]]] = []
    spare: list[tuple[float, NDArray[np.float64]]] = []
    if touches_border(source_mask):
        candidates = _border_candidates(source_mask, size, rng, tries, scale, flip)
    else:
        grained = has_texture_direction(target_image, target_on)
        candidates = _candidates(source_mask, source_on, target_on, rng, tries, scale, rotation, flip, grained)
    for matrix in candidates:
        moved_outline = _apply(matrix, outline)
        if not ((moved_outline >= -_EDGE) & (moved_outline <= np.array(size[::-1]) + _EDGE)).all():
            continue
        on = _lookup(target_on, _apply(matrix, inside)).mean()
        if on < wanted or on == 0:  # also where the example's own mask seemed to lie beside its product
            spare.append((on, matrix))
            continue
        kept.append((_difference(ring_colours, target_small, _apply(matrix, ring), size), matrix))
    if kept:
        costs = np.array([cost for cost, _ in kept])
        weights = np.exp(-(costs - costs.min()) / _TEMPERATURE)
        chosen = kept[int(rng.choice(len(kept), p=weights / weights.sum()))][1]
    elif spare:
        chosen = max(spare, key=lambda entry: entry[0])[1]
    else:
        chosen = _fit(outline, size, target_on)
    return _warp(source_image, source_mask, target_image, chosen)


class _Thumb:
    """A reduced, slightly blurred image that is looked up at full-size coordinates."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        factor = max(1.0, max(height, width) / _THUMB)
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=np.float32)
        self.pixels = ndimage.gaussian_filter(small, (0.8, 0.8, 0), truncate=2.5)
        self.ratio = np.array(size) / np.array([width, height])

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        return _lookup(self.pixels, points * self.ratio)


def _candidates(
    mask: NDArray[np.bool_],
    source_on: NDArray[np.bool_],
    target_on: NDArray[np.bool_],
    rng: np.random.Generator,
    tries: int,
    scale: tuple[float, float],
    rotation: float,
    flip: bool,
    grained: bool,
) -> Iterator[NDArray[np.float64]]:
    (height, width), size = mask.shape, target_on.shape
    ratio = np.array([size[1] / width, size[0] / height])
    base = float(ratio.mean()) if abs(ratio[0] / ratio[1] - 1) < 0.02 else 1.0
    middle = _middle(mask)
    yield _similarity(0, base, False, middle, middle * ratio)
    is_object = not (source_on.all() or target_on.all())
    source_pose, target_pose = (_pose(source_on), _pose(target_on)) if is_object else (None, None)
    # where no ground is seen the product is a texture, and the whole frame is open
    spots = np.flatnonzero(target_on)
    for _ in range(tries - 1):
        mirrored = flip and rng.random() < 0.5
        zoom = base * np.exp(rng.uniform(*np.log(scale)))
        jitter = np.deg2rad(rng.uniform(-rotation, rotation))
        kind = rng.random()
        if source_pose is not None and target_pose is not None and kind < 0.6:
            # as if the same part lay here: about its centre, along its long axis or, if it has none, turned freely
            if min(source_pose[2], target_pose[2]) > 1.3:
                turn = target_pose[1] - (np.pi - source_pose[1] if mirrored else source_pose[1])
                angle = turn + np.pi * rng.integers(2) + jitter * 0.3
            else:
                angle = rng.uniform(0, 2 * np.pi)
            zoom = base * np.exp(rng.uniform(*(0.2 * np.log(scale))))
            yield _similarity(angle, zoom, mirrored, source_pose[0], target_pose[0])
            continue
        turned = rng.uniform(0, 2 * np.pi) if source_pose is not None else np.pi / 2 * rng.integers(4) * (kind < 0.7)
        if grained:  # a patch across the grain would be a defect of its own
            turned, jitter = 2 * turned, 0.3 * jitter
        spot = int(spots[rng.integers(len(spots))])
        to = np.array([spot % size[1] + 0.5, spot // size[1] + 0.5])
        yield _similarity(turned + jitter, zoom, mirrored, middle, to)


def _border_candidates(
    mask: NDArray[np.bool_],
    size: tuple[int, ...],
    rng: np.random.Generator,
    tries: int,
    scale: tuple[float, float],
    flip: bool,
) -> Iterator[NDArray[np.float64]]:
    """The frame's own place first; then, axis by axis, scaled from the border that cuts the mask, shifted freely where
    none does, and mirrored."""
    top, left, bottom, right = bounding_box(mask)
    frame = np.array(mask.shape[::-1], dtype=np.float64)
    ratio = np.array(size[::-1]) / frame
    yield np.column_stack([np.diag(ratio), np.zeros(2)])
    for _ in range(tries - 1):
        zoom = np.exp(rng.uniform(*np.log(scale)))
        factors, shifts = np.ones(2), np.zeros(2)
        for axis, (low, high) in enumerate(((left, right), (top, bottom))):
            at_start, at_end = low == 0, high == frame[axis]
            if not (at_start and at_end):
                factors[axis] = min(zoom, frame[axis] / (high - low))
                room = max(0.0, frame[axis] - factors[axis] * (high - low))  # rounding may leave less than none
                start = 0.0 if at_start else room if at_end else rng.uniform(0, room)
                shifts[axis] = start - factors[axis] * low
            if flip and rng.random() < 0.5:
                factors[axis], shifts[axis] = -factors[axis], frame[axis] - shifts[axis]
        yield np.column_stack([np.diag(ratio * factors), ratio * shifts])


def _similarity(
    angle: float, zoom: float, mirrored: bool, origin: NDArray[np.float64], to: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Matrix that takes (x, y) `origin` to `to`, mirrors x first, then turns and scales."""
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    return np.column_stack([linear, to - linear @ origin])


def _fit(outline: NDArray[np.float64], size: tuple[int, ...], target_on: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mask at the middle of the product, shrunk and shifted until the border does not cut it."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    room = np.array(size[::-1], dtype=np.float64)
    zoom = min(1.0, float((0.9 * room / np.maximum(high - low, 1)).min()))
    half = zoom * (high - low) / 2
    to = np.clip(_middle(target_on), half, room - half)
    return _similarity(0, zoom, False, (low + high) / 2, to)


def _warp(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], target: NDArray[np.uint8], matrix: NDArray[np.float64]
) -> Placement:
    height, width = target.shape[:2]
    shrink = int(1 / max(np.sqrt(abs(np.linalg.det(matrix[:, :2]))), 1e-6))
    picture = Image.fromarray(image)
    reduced = picture.reduce(shrink) if shrink > 1 else picture  # or the bilinear filter would alias
    # the reduced picture is padded up to whole cells, so the cell size stays exactly `shrink`
    cells = np.diag([1 / shrink, 1 / shrink]) if shrink > 1 else np.eye(2)
    inverse = np.linalg.inv(matrix[:, :2])
    offset = -inverse @ matrix[:, 2]
    full = (*inverse[0], offset[0], *inverse[1], offset[1])
    small_linear, small_offset = cells @ inverse, cells @ offset
    small = (*small_linear[0], small_offset[0], *small_linear[1], small_offset[1])
    affine = Image.Transform.AFFINE
    warped = np.array(reduced.transform((width, height), affine, small, Image.Resampling.BILINEAR))
    ones = Image.fromarray(np.full(mask.shape, 255, dtype=np.uint8))
    valid = np.asarray(ones.transform((width, height), affine, full, Image.Resampling.NEAREST)) > 0
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    moved = np.asarray(soft.transform((width, height), affine, full, Image.Resampling.BILINEAR)) >= 115
    moved = moved & valid
    if not moved.any():  # a defect of few pixels, shrunk: its pixels' new places
        points = np.argwhere(mask)[:, ::-1] + 0.5
        x, y = np.clip(np.floor(_apply(matrix, points)).astype(int), 0, [width - 1, height - 1]).T
        moved = np.zeros((height, width), dtype=bool)
        moved[y, x] = True
    warped[~valid] = target[~valid]
    return Placement(moved, warped, valid, matrix)


def _sample_points(
    mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Up to `_POINTS` points (x, y) inside the mask, and as many in the ring around it."""
    top, left, bottom, right = bounding_box(mask)
    width = max(3, round(0.04 * max(mask.shape)))
    pad = width + 3
    low = (max(0, top - pad), max(0, left - pad))
    crop = mask[low[0] : bottom + pad, low[1] : right + pad]
    near = ndimage.maximum_filter(crop, 5)
    ring = ndimage.maximum_filter(crop, 2 * (width + 2) + 1) & ~near
    found = []
    for part in (crop, ring):
        points = np.argwhere(part) + low
        if len(points) > _POINTS:
            points = points[rng.choice(len(points), _POINTS, replace=False)]
        found.append(points[:, ::-1] + 0.5)
    return found[0], found[1]


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Corners (x, y) of the mask's pixels that no straight cut at the border may lose: the convex hull's, at least."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    x = np.concatenate([first, last, first, last])
    y = np.concatenate([rows, rows, rows + 1, rows + 1])
    return np.stack([x, y], axis=1).astype(np.float64)


def _difference(
    colours: NDArray[np.float32], target: _Thumb, points: NDArray[np.float64], size: tuple[int, ...]
) -> float:
    """Mean absolute grey-level difference over the ring; points outside the target count as `_OUTSIDE`."""
    if not len(points):
        return 0.0
    within = ((points >= 0) & (points < np.array(size[::-1]))).all(axis=1)
    difference = np.abs(target.at(points) - colours).mean(axis=1)
    return float(np.where(within, difference, _OUTSIDE).mean())


def _pose(product: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float, float]:
    """Centre (x, y), direction of the long axis in radians, and elongation (ratio of standard deviations)."""
    step = max(1, max(product.shape) // _THUMB)
    points = np.argwhere(product[::step, ::step])[:, ::-1] * step + step / 2
    if len(points) < 3:
        return np.array(product.shape[::-1]) / 2, 0.0, 1.0
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - centre).T))
    return centre, float(np.arctan2(vectors[1, 1], vectors[0, 1])), float(np.sqrt(values[1] / max(values[0], 1e-9)))


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    top, left, bottom, right = bounding_box(mask)
    return np.array([(left + right) / 2, (top + bottom) / 2])


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _lookup(values: NDArray, points: NDArray[np.float64]) -> NDArray:
    """Values at (x, y), the border's beyond the border."""
    x = np.clip(points[:, 0].astype(int), 0, values.shape[1] - 1)
    y = np.clip(points[:, 1].astype(int), 0, values.shape[0] - 1)
    return values[y, x]


def _otsu(values: NDArray[np.float32]) -> float:
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(np.where(above > 0, between, 0))])


def _fill_small_holes(product: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    labels, count = ndimage.label(~product)
    small = np.bincount(labels.ravel(), minlength=count + 1) < area
    small[0] = False
    return product | small[labels]
