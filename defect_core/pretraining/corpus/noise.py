"""Random fields, coordinates and distance fields that surfaces, objects and defects share."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating]  # float32, or float64 where a random number has entered
_FAR = 1e3  # pixels


def fractal(rng: np.random.Generator, size: int, exponent: float, stretch: float = 1.0, angle: float = 0.0) -> Array:
    """Return a Gaussian random field [size, size] of zero mean and unit standard deviation.

    Its amplitude falls as frequency^-exponent.

    Args:
        rng: source of randomness.
        size: side in pixels.
        exponent: 0 is white noise, 1 is pink noise, 2 is smooth clouds.
        stretch: ratio of the correlation lengths along and across `angle`.
        angle: texture direction in radians.
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
    """Return x and y of every pixel, [size, size] each, in units of half the side.

    The origin is at `centre`, and the axes are rotated by `angle` in radians.
    """
    x, y = _grid(size)
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def soft_step(distance: Array, softness: float) -> Array:
    """Return 1 where a signed distance is negative and 0 where it is positive; the edge is linear, `softness` wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def colour(rng: np.random.Generator, gray: bool, low: float = 0.1, high: float = 0.9) -> Array:
    """Return a random colour or gray with a brightness between `low` and `high`, RGB float32 [3] in [0, 1]."""
    value = rng.uniform(low, high)
    if gray:
        return np.full(3, value, np.float32)
    tint = rng.dirichlet((1.5, 1.5, 1.5)) * 3
    strength = rng.uniform(0, 1) ** 2.5  # most industrial images are nearly gray
    return np.clip(value * (1 + strength * (tint - 1)), 0.02, 1).astype(np.float32)


def path_distance(size: int, points: Array) -> tuple[Array, Array]:
    """Return the distance of every pixel to a polyline, and the position of the nearest point on it, from 0 to 1.

    Both are [size, size]. `points` are x and y of the vertices, [N, 2]. The unit is pixels. The distance is 1000
    everywhere if the polyline is outside the image.
    """
    is_off_path = np.ones((size, size), bool)
    position = np.zeros((size, size), np.float32)
    count = max(2, int(np.abs(np.diff(points, axis=0)).sum() * 1.5))
    t = np.linspace(0, len(points) - 1, count)
    x = np.interp(t, np.arange(len(points)), points[:, 0])
    y = np.interp(t, np.arange(len(points)), points[:, 1])
    inside = (x >= 0) & (x <= size - 1) & (y >= 0) & (y <= size - 1)
    if not inside.any():
        return np.full((size, size), _FAR, np.float32), position
    columns, rows = x[inside].round().astype(int), y[inside].round().astype(int)
    is_off_path[rows, columns] = False
    position[rows, columns] = t[inside] / max(1, len(points) - 1)
    transform: Any = ndimage.distance_transform_edt  # scipy declares no type for the pair that it returns
    distance, nearest = transform(is_off_path, return_indices=True)
    return distance.astype(np.float32), position[nearest[0], nearest[1]]


def blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float, roughness: float) -> Array:
    """Return the approximate signed distance in pixels to an irregular blob, float32 [size, size], negative inside.

    `centre` is x and y in pixels. `roughness` is the irregularity of the outline in radii; 0 gives an ellipse.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    angle, ratio = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.5, 0.5))
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(u * ratio, v / ratio) - radius
    if roughness:
        distance = distance + roughness * radius * fractal(rng, size, 1.6) / 2
    return distance.astype(np.float32)


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Array, Array]:
    return np.fft.fftfreq(size)[:, None].astype(np.float32), np.fft.rfftfreq(size)[None].astype(np.float32)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    return np.broadcast_to(axis[None], (size, size)), np.broadcast_to(axis[:, None], (size, size))
