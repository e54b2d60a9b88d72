"""Defects drawn into a picture: each changes some pixels and says which."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from defect_core.pretraining.corpus.noise import Array, blob, colour, fractal, path_distance


@dataclass
class Plate:
    """A picture without a defect, as the defects need it.

    Attributes:
        image: float32 [size, size, 3] in [0, 1].
        background: what shows where a part is missing, same shape; None for a surface.
        solid: bool [size, size], where there is material.
        gray: draw without colour.
    """

    image: Array
    background: Array | None
    solid: np.ndarray
    gray: bool

    @property
    def size(self) -> int:
        return self.image.shape[0]


def draw_defect(rng: np.random.Generator, plate: Plate) -> tuple[Array, np.ndarray, str, str] | None:
    """Put one defect on a plate.

    Returns:
        The new image, the mask (bool; exactly the pixels that differ from the plate's), the kind and its words; None
        when the defect drawn by lot does not show here (try again).
    """
    kinds = [kind for kind, (_, _, where) in DEFECTS.items() if where != "object" or plate.background is not None]
    kind = str(rng.choice(kinds))
    draw, names, _ = DEFECTS[kind]
    rows, columns = np.nonzero(plate.solid)
    pick = rng.integers(len(rows))
    changed, area = draw(rng, plate, (float(columns[pick]), float(rows[pick])))
    changed = np.clip(changed, 0, 1).astype(np.float32)
    visible = np.abs(changed - plate.image).max(-1)
    mask = area & (visible > 2 / 255)
    mask = ndimage.binary_closing(mask, iterations=1) | mask
    share = mask.mean()
    if share < 12 / 128**2 or share > 0.35 or visible[mask].mean() < 0.04:
        return None
    return np.where(mask[..., None], changed, plate.image), mask, kind, str(rng.choice(names))


Drawn = tuple[Array, np.ndarray]
At = tuple[float, float]


def _mix(image: Array, alpha: Array, other: Array) -> Array:
    return image + alpha[..., None] * (other - image)


def _near(distance: Array, width: float) -> Array:
    return np.clip((width - distance) / max(1.0, 0.35 * width) + 0.5, 0, 1)


def _walk(rng: np.random.Generator, plate: Plate, at: At, length: float, jitter: float, bend: float) -> Array:
    count = max(3, int(length / 4))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, count)) + rng.normal(0, jitter, count)
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * length / count
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])
    return (path - path.mean(0) + at).astype(np.float32)


def _scratch(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size, solid = plate.size, plate.solid
    image, area = plate.image.copy(), np.zeros_like(solid)
    points = _walk(rng, plate, at, rng.uniform(0.12, 0.8) * size, 0.03, 0.08)
    width = rng.uniform(0.5, 2.2) * size / 128
    tone = rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)
    for k in range(rng.choice([1, 1, 1, 2, 3])):
        shifted = points + rng.normal(0, 3, 2) * (k > 0)
        distance, along = path_distance(rng, size, shifted)
        taper = np.minimum(1, 4 * np.minimum(along, 1 - along) + 0.3)
        alpha = _near(distance, width * 0.7) * taper * (0.75 + 0.25 * np.sin(along * rng.uniform(10, 60))) * solid
        rim = _near(np.abs(distance - width - 1), 0.6) * taper * solid
        image = image + (tone * alpha - 0.3 * tone * rim)[..., None]
        area |= (alpha > 0.15) | (rim > 0.3)
    return image, area


def _crack(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    length = rng.uniform(0.15, 0.7) * size
    width = rng.uniform(0.5, 1.8) * size / 128
    distance, along = path_distance(rng, size, _walk(rng, plate, at, length, 0.7, 0.15))
    alpha = _near(distance, width * 0.7) * (1 - 0.5 * along)
    for _ in range(rng.integers(0, 3)):
        start = (at[0] + rng.normal(0, length / 6), at[1] + rng.normal(0, length / 6))
        branch, _ = path_distance(rng, size, _walk(rng, plate, start, length * 0.4, 0.7, 0.2))
        alpha = np.maximum(alpha, 0.8 * _near(branch, width * 0.5))
    alpha = alpha * plate.solid
    dark = plate.image * rng.uniform(0.1, 0.5) if rng.random() < 0.85 else plate.image + 0.3
    return _mix(plate.image, alpha, dark), alpha > 0.15


def _cut(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    distance, along = path_distance(rng, size, _walk(rng, plate, at, rng.uniform(0.1, 0.5) * size, 0.0, 0.03))
    width = rng.uniform(1, 3.5) * size / 128 * np.sqrt(np.clip(1 - (2 * along - 1) ** 2, 0, 1))
    alpha = np.clip(width - distance + 0.5, 0, 1) * plate.solid
    lip = np.clip(1 - np.abs(distance - width - 1), 0, 1) * plate.solid
    changed = _mix(plate.image, alpha, plate.image * rng.uniform(0.05, 0.4)) + (0.25 * lip)[..., None]
    return changed, (alpha > 0.1) | (lip > 0.2)


def _hole(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    distance = blob(rng, size, at, rng.uniform(0.02, 0.12) * size, rng.uniform(0, 0.4))
    inside = np.clip(0.5 - distance / 1.5, 0, 1) * plate.solid
    if plate.background is not None and rng.random() < 0.5:
        bottom = plate.background
    else:
        bottom = plate.image.mean((0, 1)) * rng.uniform(0.05, 0.35)
    angle = rng.uniform(0, 6.3)
    slope_y, slope_x = np.gradient(distance)
    rim = np.exp(-((distance / (0.012 * size)) ** 2)) * (np.cos(angle) * slope_x + np.sin(angle) * slope_y)
    changed = _mix(plate.image, inside, bottom) + (rng.uniform(0.1, 0.4) * rim * plate.solid)[..., None]
    return changed, (distance < 0.02 * size) & plate.solid


def _blowholes(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    image, area = plate.image, np.zeros_like(plate.solid)
    for _ in range(rng.integers(1, 7)):
        centre = (at[0] + rng.normal(0, 0.06) * size, at[1] + rng.normal(0, 0.06) * size)
        distance = blob(rng, size, centre, rng.uniform(0.008, 0.035) * size, 0.15)
        alpha = np.clip(0.5 - distance / 2, 0, 1) * plate.solid
        image = _mix(image, alpha, image * rng.uniform(0.1, 0.5))
        area |= alpha > 0.15
    return image, area


def _dent(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    radius = rng.uniform(0.03, 0.15) * size
    distance = blob(rng, size, at, radius, rng.uniform(0, 0.25))
    bowl = -(np.clip(-distance / radius, 0, 1) ** rng.uniform(1, 2))
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(bowl, 0.04 * size / 3) * radius)
    angle = rng.uniform(0, 6.3)
    shade = (np.cos(angle) * slope_x + np.sin(angle) * slope_y) * rng.uniform(0.15, 0.5) - 0.1 * (bowl < -0.3)
    return plate.image * (1 + shade * plate.solid)[..., None] + (0.2 * shade * plate.solid)[..., None], (
        np.abs(shade) > 0.03
    ) & plate.solid


def _stain(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    distance = blob(rng, size, at, rng.uniform(0.04, 0.2) * size, rng.uniform(0.2, 0.9))
    alpha = np.clip(0.5 - distance / rng.uniform(2, 0.06 * size + 2), 0, 1) * plate.solid
    if rng.random() < 0.4:
        alpha = alpha * np.clip(0.4 + 0.6 * np.exp(-((distance / (0.02 * size)) ** 2)), 0, 1)
    tint = colour(rng, plate.gray, 0.05, 0.95)
    strength = rng.uniform(0.3, 0.8)
    other = plate.image * tint * 1.1 if rng.random() < 0.6 else tint
    return _mix(plate.image, alpha * strength, other), alpha > 0.12


def _foreign(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    image, area = plate.image, np.zeros_like(plate.solid)
    tint = colour(rng, plate.gray, 0.02, 0.98)
    for _ in range(rng.integers(1, 6)):
        centre = (at[0] + rng.normal(0, 0.05) * size, at[1] + rng.normal(0, 0.05) * size)
        distance = blob(rng, size, centre, rng.uniform(0.01, 0.05) * size, rng.uniform(0.2, 0.8))
        alpha = np.clip(0.5 - distance, 0, 1)
        light = 1 + 0.3 * np.clip(np.gradient(distance, axis=0), -1, 1) * rng.choice([-1, 1])
        image = _mix(image, alpha, tint * light[..., None])
        area |= alpha > 0.15
    return image, area


def _fibre(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    distance, _ = path_distance(rng, size, _walk(rng, plate, at, rng.uniform(0.15, 0.7) * size, 0.05, 0.35))
    alpha = _near(distance, rng.uniform(0.4, 1.2) * size / 128)
    return _mix(plate.image, alpha, colour(rng, plate.gray, 0.0, 1.0)), alpha > 0.15


def _fray(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    image, area = plate.image, np.zeros_like(plate.solid)
    tone = np.clip(plate.image.mean((0, 1)) * rng.uniform(0.5, 1.8), 0, 1)
    for _ in range(rng.integers(5, 14)):
        centre = (at[0] + rng.normal(0, 0.03) * size, at[1] + rng.normal(0, 0.03) * size)
        distance, _ = path_distance(rng, size, _walk(rng, plate, centre, rng.uniform(0.06, 0.25) * size, 0.1, 0.3))
        alpha = _near(distance, 0.5 * size / 128)
        image = _mix(image, alpha * 0.9, tone * rng.uniform(0.7, 1.3))
        area |= alpha > 0.2
    return image, area


def _missing(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    """A piece of the object gone, from its edge inwards; the background shows."""
    size = plate.size
    edge = plate.solid & ~ndimage.binary_erosion(plate.solid, iterations=2, border_value=1)
    rows, columns = np.nonzero(edge)
    if len(rows):
        pick = rng.integers(len(rows))
        at = (float(columns[pick]), float(rows[pick]))
    distance = blob(rng, size, at, rng.uniform(0.05, 0.2) * size, rng.uniform(0, 0.5))
    alpha = np.clip(0.5 - distance / 1.5, 0, 1)
    flesh = np.exp(-(((distance - 0.01 * size) / (0.012 * size)) ** 2)) * plate.solid * rng.uniform(0, 0.4)
    changed = plate.image * (1 + rng.choice([-1, 1]) * flesh[..., None])
    return _mix(changed, alpha, plate.background), (alpha > 0.1) | (flesh > 0.08)


def _displaced(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    """Material pushed about: a smooth local warp."""
    size = plate.size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    reach = rng.uniform(0.06, 0.2) * size
    weight = np.exp(-((((x - at[0]) ** 2 + (y - at[1]) ** 2) / reach**2) ** 1.5))
    shift = rng.normal(0, 0.05, 2) * size
    wave = rng.uniform(0, 0.02) * size
    u = x + weight * (shift[0] + wave * fractal(rng, size, 1.8))
    v = y + weight * (shift[1] + wave * fractal(rng, size, 1.8))
    changed = np.stack(
        [ndimage.map_coordinates(plate.image[..., c], (v, u), order=1, mode="nearest") for c in range(3)], -1
    )
    return changed, (weight > 0.2) & (np.abs(changed - plate.image).max(-1) > 0.03)


def _swapped(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    """A patch of the pattern misplaced: copied from elsewhere, turned or mirrored."""
    size = plate.size
    distance = blob(rng, size, at, rng.uniform(0.05, 0.15) * size, rng.uniform(0, 0.3))
    other = np.roll(plate.image, tuple(rng.integers(size // 8, size // 2, 2)), (0, 1))
    other = np.rot90(other, rng.integers(0, 4)) * rng.uniform(0.8, 1.2)
    alpha = np.clip(0.5 - distance / 2, 0, 1) * plate.solid
    return _mix(plate.image, alpha, other), alpha > 0.1


def _misprint(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    """Ink smeared along one direction, or faded."""
    size = plate.size
    distance = blob(rng, size, at, rng.uniform(0.06, 0.18) * size, 0.2)
    alpha = np.clip(0.5 - distance / 4, 0, 1) * plate.solid
    if rng.random() < 0.5:
        other = ndimage.uniform_filter1d(plate.image, int(rng.uniform(0.06, 0.2) * size), axis=int(rng.integers(2)))
    else:
        other = ndimage.uniform_filter(plate.image, (size // 3, size // 3, 1)) + rng.uniform(-0.2, 0.2)
    return _mix(plate.image, alpha, other), alpha > 0.1


def _wear(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    size = plate.size
    distance = blob(rng, size, at, rng.uniform(0.06, 0.2) * size, 0.6)
    grain = fractal(rng, size, rng.uniform(0.3, 1), rng.uniform(1, 15), rng.uniform(0, 3.2))
    alpha = np.clip(0.5 - distance / (0.03 * size), 0, 1) * np.clip(0.6 + 0.5 * grain, 0, 1) * plate.solid
    return plate.image + (alpha * rng.choice([-1, 1]) * rng.uniform(0.15, 0.45))[..., None], alpha > 0.12


def _chip(rng: np.random.Generator, plate: Plate, at: At) -> Drawn:
    """A flake off: a sharp-cornered patch of bare material, lit at one side."""
    size = plate.size
    radius = rng.uniform(0.03, 0.12) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    distance = np.full((size, size), -1e3, np.float32)
    for angle in np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8))):
        distance = np.maximum(distance, np.cos(angle) * (x - at[0]) + np.sin(angle) * (y - at[1]) - radius)
    distance = np.maximum(distance, np.hypot(x - at[0], y - at[1]) - 2 * radius) + 0.1 * radius * fractal(
        rng, size, 1.2
    )
    alpha = np.clip(0.5 - distance / 1.5, 0, 1) * plate.solid
    bare = colour(rng, plate.gray or rng.random() < 0.5, 0.1, 0.95) * (1 + 0.08 * fractal(rng, size, 0.8))[..., None]
    edge = np.exp(-((distance / 1.5) ** 2)) * np.clip(np.gradient(distance, axis=int(rng.integers(2))), -1, 1)
    return _mix(plate.image, alpha, bare) + (0.25 * edge * plate.solid)[..., None], (alpha > 0.1) | (np.abs(edge) > 0.3)


Draw = Callable[[np.random.Generator, Plate, At], Drawn]
DEFECTS: dict[str, tuple[Draw, tuple[str, ...], str]] = {
    "scratch": (_scratch, ("scratch", "scratches", "scrape", "scratch mark", "score mark"), "any"),
    "crack": (_crack, ("crack", "fracture", "split", "hairline crack"), "any"),
    "cut": (_cut, ("cut", "slit", "tear", "gash"), "any"),
    "hole": (_hole, ("hole", "puncture", "poke", "pierced hole"), "any"),
    "blowhole": (_blowholes, ("blowhole", "pores", "pitting", "pinholes", "porosity"), "any"),
    "dent": (_dent, ("dent", "bump", "squeeze mark", "impression", "press mark"), "any"),
    "stain": (
        _stain,
        ("stain", "discolouration", "colour defect", "oil spot", "liquid", "rust", "uneven patch"),
        "any",
    ),
    "contamination": (_foreign, ("contamination", "dirt", "foreign particle", "debris", "glue"), "any"),
    "fibre": (_fibre, ("thread", "fibre", "hair", "snag", "loose thread"), "any"),
    "fray": (_fray, ("fray", "frayed fibres", "fuzz", "loose strands"), "any"),
    "missing": (_missing, ("missing part", "break", "broken edge", "broken piece", "chipped edge"), "object"),
    "bend": (_displaced, ("bend", "deformation", "bent part", "warp", "thread damage"), "any"),
    "misplaced": (_swapped, ("misplaced part", "wrong pattern", "fold", "manipulated part"), "any"),
    "misprint": (_misprint, ("misprint", "faulty imprint", "smeared print", "faded print", "blur"), "any"),
    "wear": (_wear, ("wear", "rough patch", "abrasion", "worn patch", "damaged surface"), "any"),
    "chip": (_chip, ("chip", "flake", "peeled coating", "broken patch"), "any"),
}
