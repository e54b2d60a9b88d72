"""Render flat surfaces that fill the image: metal, cloth, wood, granules, print, mesh, coating."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from defect_core.pretraining.corpus.noise import Array, colour, coordinates, fractal, soft_step

SurfaceRenderer = Callable[[np.random.Generator, int, bool], Array]


def render_surface(rng: np.random.Generator, size: int, gray: bool) -> tuple[Array, str, str]:
    """Render one random surface, in gray if `gray`.

    Returns:
        The image, float32 [S, S, 3] in [0, 1], where S is `size`; the kind of surface; and its name.
    """
    kind = str(rng.choice(list(SURFACES)))
    render, names = SURFACES[kind]
    image = render(rng, size, gray)
    if rng.random() < 0.6:
        image = image * _illumination(rng, size)[..., None]
    return np.clip(image, 0, 1).astype(np.float32), kind, str(rng.choice(names))


def _two_tone(field: Array, first: Array, second: Array) -> Array:
    """Return the interpolation between two colours by a field [S, S], clipped to [0, 1]."""
    return first + np.clip(field, 0, 1)[..., None] * (second - first)


def _modulated_colour(rng: np.random.Generator, gray: bool, field: Array, contrast: float) -> Array:
    """Return one random colour whose brightness follows a field [S, S]."""
    base = colour(rng, gray, 0.2, 0.8)
    return base * (1 + contrast * field[..., None])


def _illumination(rng: np.random.Generator, size: int) -> Array:
    """Return the relative brightness [S, S] of light that falls off with a slope and with distance."""
    x, y = coordinates(size, (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.uniform(0, 6.3))
    slope, fall = rng.uniform(-0.2, 0.2), rng.uniform(0, 0.25)
    return 1 + slope * x - fall * (x * x + y * y) / 2


def _brushed(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Brushed or ground metal."""
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    field = fractal(rng, size, rng.uniform(0.5, 1.2), rng.uniform(8, 40), angle)
    image = _modulated_colour(rng, gray or rng.random() < 0.5, field, rng.uniform(0.03, 0.15))
    if rng.random() < 0.5:  # a ground surface has brighter bands along the texture direction
        x, y = coordinates(size)
        across = x * np.sin(angle) - y * np.cos(angle)
        brightness = ndimage.gaussian_filter1d(rng.uniform(0.3, 1.7, 24), rng.uniform(0.5, 1.5))
        image = image * np.interp(across, np.linspace(-1.5, 1.5, 24), brightness)[..., None]
    if rng.random() < 0.3:  # the edge of the part is visible
        x, y = coordinates(size, (0, 0), rng.choice([angle, 0, np.pi / 2]))
        waviness = rng.uniform(0, 0.02) * fractal(rng, size, 2)
        for sign in rng.choice([-1, 1], rng.integers(1, 3)):
            distance = sign * y + waviness - rng.uniform(0.75, 1)
            outside = np.clip(distance * size / rng.uniform(2, 8), 0, 1)[..., None]
            image = image + outside * (colour(rng, gray, 0.0, 0.3) - image)
    return image


def _cast(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Cast metal or stone."""
    field = fractal(rng, size, rng.uniform(0.4, 1.3)) + rng.uniform(0, 0.7) * fractal(rng, size, 2)
    return _modulated_colour(rng, gray or rng.random() < 0.5, field, rng.uniform(0.03, 0.16))


def _woven(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """A plain weave."""
    x, y = coordinates(size, (0, 0), rng.choice([0, rng.uniform(0, np.pi)]))
    warp = rng.uniform(0, 0.02)
    x, y = x + warp * fractal(rng, size, 2), y + warp * fractal(rng, size, 2)
    pitch = size / 2 / rng.uniform(3.5, 12)
    u, v = np.pi * x * pitch, np.pi * y * pitch * rng.uniform(0.7, 1.4)
    is_warp_on_top = np.sin(u) * np.sin(v) > 0
    field = np.where(is_warp_on_top, np.abs(np.cos(u)), np.abs(np.cos(v))) + 0.25 * fractal(rng, size, 0.6)
    second = colour(rng, gray)
    first = second * rng.uniform(0.2, 0.7) if rng.random() < 0.7 else colour(rng, gray)
    return _two_tone(field, first, second)


def _ribbed(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Parallel ribs or grooves."""
    x, _ = coordinates(size, (0, 0), rng.uniform(0, np.pi))
    wave = np.sin(np.pi * (x + rng.uniform(0, 0.02) * fractal(rng, size, 2)) * size / 2 / rng.uniform(3, 14))
    field = (
        0.5 + 0.5 * np.sign(wave) * np.abs(wave) ** rng.uniform(0.3, 2) + rng.uniform(0, 0.2) * fractal(rng, size, 0.7)
    )
    second = colour(rng, gray)
    return _two_tone(field, second * rng.uniform(0.3, 0.85), second)


def _wood(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Wood with year rings and fibres."""
    angle = rng.choice([0, np.pi / 2])
    x, _ = coordinates(size, (0, 0), angle)
    bend = rng.uniform(0.05, 0.3) * fractal(rng, size, 2.2, 4, angle + np.pi / 2)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 10) * (x + bend))
    fibre = fractal(rng, size, 0.8, 20, angle + np.pi / 2)
    field = 0.7 * rings ** rng.uniform(0.5, 2) + 0.2 * fibre + 0.1
    light = np.full(3, rng.uniform(0.4, 0.9), np.float32)
    if not gray:
        light = light * np.array([1, rng.uniform(0.65, 0.85), rng.uniform(0.35, 0.65)], np.float32)
    return _two_tone(field, light * rng.uniform(0.4, 0.8), light)


def _granular(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Granules of one to three colours."""
    image = np.tile(colour(rng, gray, 0.2, 0.8), (size, size, 1))
    for _ in range(rng.integers(1, 4)):
        field = ndimage.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0.6, 3))
        field /= field.std()
        coverage = np.clip((field - rng.uniform(0.2, 1.5)) * 3, 0, 1)[..., None]
        image = image * (1 - coverage) + coverage * colour(rng, gray, 0.05, 0.95)
    return image + 0.03 * fractal(rng, size, 0.3)[..., None]


def _cells(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Leather-like cells between random seed points."""
    count = int((size / rng.uniform(6, 24)) ** 2)
    is_not_seed = np.ones((size, size), bool)
    is_not_seed[rng.integers(0, size, count), rng.integers(0, size, count)] = False
    distance = np.asarray(ndimage.distance_transform_edt(is_not_seed), np.float32)
    field = distance / np.percentile(distance, 97)
    field = 1 - field ** rng.uniform(1, 3) + rng.uniform(0.02, 0.15) * fractal(rng, size, 0.8)
    second = colour(rng, gray, 0.15, 0.85)
    return _two_tone(field, second * rng.uniform(0.3, 0.85), second)


def _printed(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """Lines of random glyphs on paper."""
    paper, ink = colour(rng, gray, 0.6, 0.95), colour(rng, gray, 0.02, 0.5)
    if rng.random() < 0.35:
        paper, ink = ink, paper
    x, y = coordinates(size, (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.choice([0, 0, rng.uniform(0, 6.3)]))
    line, glyph = rng.uniform(0.12, 0.4), rng.uniform(0.06, 0.2)
    row, column = np.floor(y / line).astype(int), np.floor(x / glyph).astype(int)
    v, u = y / line - row, x / glyph - column
    code = (row * 7919 + column * 104729 + int(rng.integers(1 << 20))) % 1009
    strokes = ((code % 2 == 0) & (np.abs(u - 0.25) < 0.15)) | ((code % 3 == 0) & (np.abs(v - 0.3) < 0.1))
    strokes |= ((code % 5 < 2) & (np.abs(v - 0.65) < 0.1)) | ((code % 7 < 3) & (np.abs(u - 0.75) < 0.15))
    strokes &= (v > 0.2) & (v < 0.8) & (u > 0.1) & (u < 0.9) & (code % 11 != 0)
    field = ndimage.gaussian_filter(strokes.astype(np.float32), 0.5) + 0.01 * fractal(rng, size, 0.3)
    return _two_tone(field, paper, ink)


def _perforated(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """A plate with a grid of round or square holes."""
    x, y = coordinates(size, (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.choice([0, np.pi / 4, rng.uniform(0, 6.3)]))
    pitch = rng.uniform(0.12, 0.5)
    if rng.random() < 0.5:
        x = x + pitch / 2 * (np.floor(y / pitch) % 2)
    u, v = (x / pitch) % 1 - 0.5, (y / pitch) % 1 - 0.5
    radius, square = rng.uniform(0.2, 0.46), rng.random() < 0.4
    distance = (np.maximum(np.abs(u), np.abs(v)) if square else np.hypot(u, v)) - radius
    holes = soft_step(distance, 4 / size / pitch)
    front, back = colour(rng, gray, 0.3, 0.9), colour(rng, gray, 0.0, 0.4)
    rim = 1 + rng.uniform(0, 0.5) * np.exp(-((distance / 0.06) ** 2)) * np.sign(u + v)
    image = front * (rim * (1 + 0.04 * fractal(rng, size, rng.uniform(0.3, 1))))[..., None]
    return _two_tone(holes, image, back)


def _coated(rng: np.random.Generator, size: int, gray: bool) -> Array:
    """A smooth coating."""
    field = rng.uniform(0, 0.03) * fractal(rng, size, 1.2) + rng.uniform(0, 0.06) * fractal(rng, size, 2.5)
    return _modulated_colour(rng, gray, field, 1.0)


# Kind of surface: renderer and names in captions.
SURFACES: dict[str, tuple[SurfaceRenderer, tuple[str, ...]]] = {
    "brushed": (_brushed, ("brushed metal surface", "brushed steel sheet", "metal plate", "polished metal surface")),
    "cast": (_cast, ("cast iron surface", "cast metal surface", "rough metal surface", "stone tile", "magnetic tile")),
    "woven": (_woven, ("woven fabric", "carpet", "cloth", "woven mesh", "textile surface")),
    "ribbed": (_ribbed, ("ribbed surface", "machined surface", "grooved plate", "knitted fabric", "threaded surface")),
    "wood": (_wood, ("wood surface", "wooden board", "wood panel", "plank of wood")),
    "granular": (_granular, ("granular surface", "speckled tile", "granite tile", "plastic surface with grains")),
    "cells": (_cells, ("leather", "leather surface", "hammered surface", "pebbled plastic surface")),
    "printed": (_printed, ("printed label", "printed paper", "printed surface", "circuit board")),
    "perforated": (_perforated, ("perforated plate", "grid", "metal mesh", "filter plate")),
    "coated": (_coated, ("coated surface", "painted surface", "plain plastic surface", "glass plate", "smooth film")),
}
