"""Random fields and small drawing helpers that surfaces, objects and defects share."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]


def fractal(rng: np.random.Generator, size: int, exponent: float, stretch: float = 1.0, angle: float = 0.0) -> Array:
    """Gaussian field whose amplitude falls as frequency^-exponent; zero mean, unit deviation.

    Args:
        size: side in pixels.
        exponent: 0 white, 1 pink, 2 smooth clouds.
        stretch: how much longer than wide its grain is.
        angle: direction of the grain in radians.
    """
    fy, fx = _frequencies(size)
    along = np.cos(angle) * fx + np.sin(angle) * fy
    across = np.cos(angle) * fy - np.sin(angle) * fx
    radius = np.sqrt((along * stretch) ** 2 + across**2) + 1.0 / size
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * radius**-exponent
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return field / (field.std() + 1e-6)


def coordinates(size: int, centre: tuple[float, float] = (0.0, 0.0), angle: float = 0.0) -> tuple[Array, Array]:
    """x, y of every pixel in units of half the side, about a centre, turned by an angle."""
    x, y = _grid(size)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def step(distance: Array, softness: float) -> Array:
    """0 where the signed distance is positive, 1 where negative, with a linear edge of the given width."""
    return np.clip(0.5 - distance / softness, 0, 1)


def colour(rng: np.random.Generator, gray: bool, low: float = 0.1, high: float = 0.9) -> Array:
    """A random colour, or a gray when asked: float32 [3] about the given brightness range."""
    value = rng.uniform(low, high)
    if gray:
        return np.full(3, value, np.float32)
    tint = rng.dirichlet((1.5, 1.5, 1.5)) * 3
    strength = rng.uniform(0, 1) ** 2.5  # most industrial pictures have little colour
    return np.clip(value * (1 + strength * (tint - 1)), 0.02, 1).astype(np.float32)


def path_distance(rng: np.random.Generator, size: int, points: Array) -> tuple[Array, Array]:
    """Every pixel's distance to a polyline [N, 2] of x, y, all in pixels, and how far along it (0 to 1) that is."""
    seeds = np.ones((size, size), bool)
    order = np.zeros((size, size), np.float32)
    count = max(2, int(np.abs(np.diff(points, axis=0)).sum() * 1.5))
    t = np.linspace(0, len(points) - 1, count)
    x = np.interp(t, np.arange(len(points)), points[:, 0])
    y = np.interp(t, np.arange(len(points)), points[:, 1])
    inside = (x >= 0) & (x <= size - 1) & (y >= 0) & (y <= size - 1)
    if not inside.any():
        return np.full((size, size), 1e3, np.float32), order
    columns, rows = x[inside].round().astype(int), y[inside].round().astype(int)
    seeds[rows, columns] = False
    order[rows, columns] = t[inside] / max(1, len(points) - 1)
    distance, nearest = ndimage.distance_transform_edt(seeds, return_indices=True)
    return distance.astype(np.float32), order[nearest[0], nearest[1]]


def blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float, rough: float) -> Array:
    """Signed distance in pixels, roughly, to a blob about a centre in pixels; `rough` 0 is an ellipse."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    angle, ratio = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.5, 0.5))
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(u * ratio, v / ratio) - radius
    if rough:
        small = fractal(rng, size, 1.6)
        distance = distance + rough * radius * small / 2
    return distance.astype(np.float32)


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Array, Array]:
    return np.fft.fftfreq(size)[:, None].astype(np.float32), np.fft.rfftfreq(size)[None].astype(np.float32)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    return np.broadcast_to(axis[None], (size, size)), np.broadcast_to(axis[:, None], (size, size))
