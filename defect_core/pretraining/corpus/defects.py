"""Render defects into a normal image. Each renderer returns the changed image and the mask of the changed pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.pretraining.corpus.noise import Array, blob, colour, fractal, path_distance

MIN_AREA, MAX_AREA = 12 / 128**2, 0.35  # fraction of the image that a defect may cover
MIN_CHANGE = 2 / 255  # a pixel belongs to the mask if it changes by more
MIN_MEAN_CHANGE = 0.04  # a defect that changes its pixels by less on average is too faint
Mask = NDArray[np.bool_]
Rendering = tuple[Array, Mask]
Point = tuple[float, float]


@dataclass
class NormalImage:
    """A rendered image without a defect.

    Attributes:
        image: float32 [S, S, 3] in [0, 1].
        background: the image without the object, same shape; None for a surface.
        foreground: bool [S, S], the pixels of the object or the surface.
        gray: whether colours must be gray.
    """

    image: Array
    background: Array | None
    foreground: Mask
    gray: bool

    @property
    def size(self) -> int:
        """Side in pixels, S."""
        return self.image.shape[0]


def render_defect(rng: np.random.Generator, normal: NormalImage) -> tuple[Array, Mask, str, str] | None:
    """Render one random defect into a copy of a normal image.

    Returns:
        The image; the mask, exactly the pixels that differ from the normal image; the kind of defect; and its name.
        None if the defect is too small, too large or too faint.
    """
    kinds = [kind for kind in DEFECTS if normal.background is not None or not DEFECTS[kind].needs_background]
    kind = str(rng.choice(kinds))
    render, names, _ = DEFECTS[kind]
    rows, columns = np.nonzero(normal.foreground)
    index = rng.integers(len(rows))
    changed, area = render(rng, normal, (float(columns[index]), float(rows[index])))
    changed = np.clip(changed, 0, 1).astype(np.float32)
    change = np.abs(changed - normal.image).max(-1)
    mask = area & (change > MIN_CHANGE)
    mask = ndimage.binary_closing(mask, iterations=1) | mask
    fraction = mask.mean()
    if fraction < MIN_AREA or fraction > MAX_AREA or change[mask].mean() < MIN_MEAN_CHANGE:
        return None
    return np.where(mask[..., None], changed, normal.image), mask, kind, str(rng.choice(names))


def _blend(image: Array, alpha: Array, other: Array) -> Array:
    """Return `other` over `image` [S, S, 3] with opacity `alpha` [S, S]."""
    return image + alpha[..., None] * (other - image)


def _line_coverage(distance: Array, width: float) -> Array:
    """Return the opacity of a soft line whose half width is `width` pixels."""
    return np.clip((width - distance) / max(1.0, 0.35 * width) + 0.5, 0, 1)


def _random_path(rng: np.random.Generator, centre: Point, length: float, jitter: float, bend: float) -> Array:
    """Return the vertices [N, 2] of a random curve of about `length` pixels.

    `jitter` and `bend` are standard deviations of the heading in radians: independent per vertex, and accumulated.
    """
    count = max(3, int(length / 4))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, count)) + rng.normal(0, jitter, count)
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * length / count
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])
    return (path - path.mean(0) + centre).astype(np.float32)


def _scratch(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """One or several parallel thin lines with a bright and a dark side."""
    size, foreground = normal.size, normal.foreground
    image, area = normal.image.copy(), np.zeros_like(foreground)
    points = _random_path(rng, position, rng.uniform(0.12, 0.8) * size, 0.03, 0.08)
    width = rng.uniform(0.5, 2.2) * size / 128
    tone = rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)
    for k in range(rng.choice([1, 1, 1, 2, 3])):
        shifted = points + rng.normal(0, 3, 2) * (k > 0)
        distance, along = path_distance(size, shifted)
        taper = np.minimum(1, 4 * np.minimum(along, 1 - along) + 0.3)
        alpha = _line_coverage(distance, width * 0.7) * taper * (0.75 + 0.25 * np.sin(along * rng.uniform(10, 60)))
        alpha = alpha * foreground
        rim = _line_coverage(np.abs(distance - width - 1), 0.6) * taper * foreground
        image = image + (tone * alpha - 0.3 * tone * rim)[..., None]
        area |= (alpha > 0.15) | (rim > 0.3)
    return image, area


def _crack(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A jagged dark line, with up to two branches."""
    size = normal.size
    length = rng.uniform(0.15, 0.7) * size
    width = rng.uniform(0.5, 1.8) * size / 128
    distance, along = path_distance(size, _random_path(rng, position, length, 0.7, 0.15))
    alpha = _line_coverage(distance, width * 0.7) * (1 - 0.5 * along)
    for _ in range(rng.integers(0, 3)):
        start = (position[0] + rng.normal(0, length / 6), position[1] + rng.normal(0, length / 6))
        branch, _ = path_distance(size, _random_path(rng, start, length * 0.4, 0.7, 0.2))
        alpha = np.maximum(alpha, 0.8 * _line_coverage(branch, width * 0.5))
    alpha = alpha * normal.foreground
    dark = normal.image * rng.uniform(0.1, 0.5) if rng.random() < 0.85 else normal.image + 0.3
    return _blend(normal.image, alpha, dark), alpha > 0.15


def _cut(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A smooth dark slit with a bright rim."""
    size = normal.size
    distance, along = path_distance(size, _random_path(rng, position, rng.uniform(0.1, 0.5) * size, 0.0, 0.03))
    width = rng.uniform(1, 3.5) * size / 128 * np.sqrt(np.clip(1 - (2 * along - 1) ** 2, 0, 1))
    alpha = np.clip(width - distance + 0.5, 0, 1) * normal.foreground
    lip = np.clip(1 - np.abs(distance - width - 1), 0, 1) * normal.foreground
    changed = _blend(normal.image, alpha, normal.image * rng.uniform(0.05, 0.4)) + (0.25 * lip)[..., None]
    return changed, (alpha > 0.1) | (lip > 0.2)


def _hole(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A dark hole, or one through which the background is visible, with a lit rim."""
    size = normal.size
    distance = blob(rng, size, position, rng.uniform(0.02, 0.12) * size, rng.uniform(0, 0.4))
    inside = np.clip(0.5 - distance / 1.5, 0, 1) * normal.foreground
    if normal.background is not None and rng.random() < 0.5:
        bottom = normal.background
    else:
        bottom = normal.image.mean((0, 1)) * rng.uniform(0.05, 0.35)
    angle = rng.uniform(0, 6.3)
    slope_y, slope_x = np.gradient(distance)
    rim = np.exp(-((distance / (0.012 * size)) ** 2)) * (np.cos(angle) * slope_x + np.sin(angle) * slope_y)
    changed = _blend(normal.image, inside, bottom) + (rng.uniform(0.1, 0.4) * rim * normal.foreground)[..., None]
    return changed, (distance < 0.02 * size) & normal.foreground


def _blowhole(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A cluster of small dark pores."""
    size = normal.size
    image, area = normal.image, np.zeros_like(normal.foreground)
    for _ in range(rng.integers(1, 7)):
        centre = (position[0] + rng.normal(0, 0.06) * size, position[1] + rng.normal(0, 0.06) * size)
        distance = blob(rng, size, centre, rng.uniform(0.008, 0.035) * size, 0.15)
        alpha = np.clip(0.5 - distance / 2, 0, 1) * normal.foreground
        image = _blend(image, alpha, image * rng.uniform(0.1, 0.5))
        area |= alpha > 0.15
    return image, area


def _dent(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A depression, visible by its shading."""
    size = normal.size
    radius = rng.uniform(0.03, 0.15) * size
    distance = blob(rng, size, position, radius, rng.uniform(0, 0.25))
    bowl = -(np.clip(-distance / radius, 0, 1) ** rng.uniform(1, 2))
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(bowl, 0.04 * size / 3) * radius)
    angle = rng.uniform(0, 6.3)
    shade = (np.cos(angle) * slope_x + np.sin(angle) * slope_y) * rng.uniform(0.15, 0.5) - 0.1 * (bowl < -0.3)
    changed = normal.image * (1 + shade * normal.foreground)[..., None]
    return changed + (0.2 * shade * normal.foreground)[..., None], (np.abs(shade) > 0.03) & normal.foreground


def _stain(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A discoloured area, sometimes with a dark outline."""
    size = normal.size
    distance = blob(rng, size, position, rng.uniform(0.04, 0.2) * size, rng.uniform(0.2, 0.9))
    alpha = np.clip(0.5 - distance / rng.uniform(2, 0.06 * size + 2), 0, 1) * normal.foreground
    if rng.random() < 0.4:
        alpha = alpha * np.clip(0.4 + 0.6 * np.exp(-((distance / (0.02 * size)) ** 2)), 0, 1)
    tint = colour(rng, normal.gray, 0.05, 0.95)
    strength = rng.uniform(0.3, 0.8)
    other = normal.image * tint * 1.1 if rng.random() < 0.6 else tint
    return _blend(normal.image, alpha * strength, other), alpha > 0.12


def _contamination(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A group of foreign particles."""
    size = normal.size
    image, area = normal.image, np.zeros_like(normal.foreground)
    tint = colour(rng, normal.gray, 0.02, 0.98)
    for _ in range(rng.integers(1, 6)):
        centre = (position[0] + rng.normal(0, 0.05) * size, position[1] + rng.normal(0, 0.05) * size)
        distance = blob(rng, size, centre, rng.uniform(0.01, 0.05) * size, rng.uniform(0.2, 0.8))
        alpha = np.clip(0.5 - distance, 0, 1)
        light = 1 + 0.3 * np.clip(np.gradient(distance, axis=0), -1, 1) * rng.choice([-1, 1])
        image = _blend(image, alpha, tint * light[..., None])
        area |= alpha > 0.15
    return image, area


def _fibre(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """One thin coloured thread."""
    size = normal.size
    distance, _ = path_distance(size, _random_path(rng, position, rng.uniform(0.15, 0.7) * size, 0.05, 0.35))
    alpha = _line_coverage(distance, rng.uniform(0.4, 1.2) * size / 128)
    return _blend(normal.image, alpha, colour(rng, normal.gray, 0.0, 1.0)), alpha > 0.15


def _fray(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A bundle of short loose fibres."""
    size = normal.size
    image, area = normal.image, np.zeros_like(normal.foreground)
    tone = np.clip(normal.image.mean((0, 1)) * rng.uniform(0.5, 1.8), 0, 1)
    for _ in range(rng.integers(5, 14)):
        centre = (position[0] + rng.normal(0, 0.03) * size, position[1] + rng.normal(0, 0.03) * size)
        distance, _ = path_distance(size, _random_path(rng, centre, rng.uniform(0.06, 0.25) * size, 0.1, 0.3))
        alpha = _line_coverage(distance, 0.5 * size / 128)
        image = _blend(image, alpha * 0.9, tone * rng.uniform(0.7, 1.3))
        area |= alpha > 0.2
    return image, area


def _missing(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A piece broken off the edge of the object; the background is visible there."""
    size = normal.size
    inside = np.asarray(ndimage.binary_erosion(normal.foreground, iterations=2, border_value=1), bool)
    edge = normal.foreground & ~inside
    rows, columns = np.nonzero(edge)
    if len(rows):
        index = rng.integers(len(rows))
        position = (float(columns[index]), float(rows[index]))
    distance = blob(rng, size, position, rng.uniform(0.05, 0.2) * size, rng.uniform(0, 0.5))
    alpha = np.clip(0.5 - distance / 1.5, 0, 1)
    fracture = np.exp(-(((distance - 0.01 * size) / (0.012 * size)) ** 2)) * normal.foreground * rng.uniform(0, 0.4)
    changed = normal.image * (1 + rng.choice([-1, 1]) * fracture[..., None])
    if normal.background is None:
        raise ValueError("a missing part needs a background")
    return _blend(changed, alpha, normal.background), (alpha > 0.1) | (fracture > 0.08)


def _deformation(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A smooth local warp."""
    size = normal.size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radius = rng.uniform(0.06, 0.2) * size
    weight = np.exp(-((((x - position[0]) ** 2 + (y - position[1]) ** 2) / radius**2) ** 1.5))
    shift = rng.normal(0, 0.05, 2) * size
    wave = rng.uniform(0, 0.02) * size
    u = x + weight * (shift[0] + wave * fractal(rng, size, 1.8))
    v = y + weight * (shift[1] + wave * fractal(rng, size, 1.8))
    changed = np.stack(
        [ndimage.map_coordinates(normal.image[..., c], (v, u), order=1, mode="nearest") for c in range(3)], -1
    )
    return changed, (weight > 0.2) & (np.abs(changed - normal.image).max(-1) > 0.03)


def _misplaced(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A patch of the pattern, copied from elsewhere and rotated by a multiple of 90 degrees."""
    size = normal.size
    distance = blob(rng, size, position, rng.uniform(0.05, 0.15) * size, rng.uniform(0, 0.3))
    other = np.roll(normal.image, tuple(rng.integers(size // 8, size // 2, 2)), (0, 1))
    other = np.rot90(other, int(rng.integers(0, 4))) * rng.uniform(0.8, 1.2)
    alpha = np.clip(0.5 - distance / 2, 0, 1) * normal.foreground
    return _blend(normal.image, alpha, other), alpha > 0.1


def _misprint(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """Print that is smeared along one axis or faded."""
    size = normal.size
    distance = blob(rng, size, position, rng.uniform(0.06, 0.18) * size, 0.2)
    alpha = np.clip(0.5 - distance / 4, 0, 1) * normal.foreground
    if rng.random() < 0.5:
        other = ndimage.uniform_filter1d(normal.image, int(rng.uniform(0.06, 0.2) * size), axis=int(rng.integers(2)))
    else:
        blurred = ndimage.uniform_filter1d(ndimage.uniform_filter1d(normal.image, size // 3, axis=0), size // 3, axis=1)
        other = blurred + rng.uniform(-0.2, 0.2)
    return _blend(normal.image, alpha, other), alpha > 0.1


def _wear(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A rough area that is brighter or darker than the rest."""
    size = normal.size
    distance = blob(rng, size, position, rng.uniform(0.06, 0.2) * size, 0.6)
    texture = fractal(rng, size, rng.uniform(0.3, 1), rng.uniform(1, 15), rng.uniform(0, 3.2))
    alpha = np.clip(0.5 - distance / (0.03 * size), 0, 1) * np.clip(0.6 + 0.5 * texture, 0, 1) * normal.foreground
    return normal.image + (alpha * rng.choice([-1, 1]) * rng.uniform(0.15, 0.45))[..., None], alpha > 0.12


def _chip(rng: np.random.Generator, normal: NormalImage, position: Point) -> Rendering:
    """A polygonal patch of bare material where a flake came off, lit from one side."""
    size = normal.size
    radius = rng.uniform(0.03, 0.12) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    distance = np.full((size, size), -1e3, np.float32)
    for angle in np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8))):
        distance = np.maximum(distance, np.cos(angle) * (x - position[0]) + np.sin(angle) * (y - position[1]) - radius)
    distance = np.maximum(distance, np.hypot(x - position[0], y - position[1]) - 2 * radius)
    distance = distance + 0.1 * radius * fractal(rng, size, 1.2)
    alpha = np.clip(0.5 - distance / 1.5, 0, 1) * normal.foreground
    bare = colour(rng, normal.gray or rng.random() < 0.5, 0.1, 0.95) * (1 + 0.08 * fractal(rng, size, 0.8))[..., None]
    edge = np.exp(-((distance / 1.5) ** 2)) * np.clip(np.gradient(distance, axis=int(rng.integers(2))), -1, 1)
    changed = _blend(normal.image, alpha, bare) + (0.25 * edge * normal.foreground)[..., None]
    return changed, (alpha > 0.1) | (np.abs(edge) > 0.3)


class DefectKind(NamedTuple):
    """One kind of defect.

    Attributes:
        render: renders it at a position (x, y) of a normal image.
        names: its names in captions.
        needs_background: whether it can occur on objects only.
    """

    render: Callable[[np.random.Generator, NormalImage, Point], Rendering]
    names: tuple[str, ...]
    needs_background: bool = False


DEFECTS = {
    "scratch": DefectKind(_scratch, ("scratch", "scratches", "scrape", "scratch mark", "score mark")),
    "crack": DefectKind(_crack, ("crack", "fracture", "split", "hairline crack")),
    "cut": DefectKind(_cut, ("cut", "slit", "tear", "gash")),
    "hole": DefectKind(_hole, ("hole", "puncture", "poke", "pierced hole")),
    "blowhole": DefectKind(_blowhole, ("blowhole", "pores", "pitting", "pinholes", "porosity")),
    "dent": DefectKind(_dent, ("dent", "bump", "squeeze mark", "impression", "press mark")),
    "stain": DefectKind(
        _stain, ("stain", "discolouration", "colour defect", "oil spot", "liquid", "rust", "uneven patch")
    ),
    "contamination": DefectKind(_contamination, ("contamination", "dirt", "foreign particle", "debris", "glue")),
    "fibre": DefectKind(_fibre, ("thread", "fibre", "hair", "snag", "loose thread")),
    "fray": DefectKind(_fray, ("fray", "frayed fibres", "fuzz", "loose strands")),
    "missing": DefectKind(
        _missing, ("missing part", "break", "broken edge", "broken piece", "chipped edge"), needs_background=True
    ),
    "bend": DefectKind(_deformation, ("bend", "deformation", "bent part", "warp", "thread damage")),
    "misplaced": DefectKind(_misplaced, ("misplaced part", "wrong pattern", "fold", "manipulated part")),
    "misprint": DefectKind(_misprint, ("misprint", "faulty imprint", "smeared print", "faded print", "blur")),
    "wear": DefectKind(_wear, ("wear", "rough patch", "abrasion", "worn patch", "damaged surface")),
    "chip": DefectKind(_chip, ("chip", "flake", "peeled coating", "broken patch")),
}
