"""Shared parts of the demo products: the scene, the camera that photographs it, curves, blobs and noise fields."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Field = NDArray[np.float32]
SCALE = 2
"""Scenes are rendered at this multiple of the photograph's resolution."""


@dataclass
class Scene:
    """The light of a scene, before it is photographed.

    Attributes:
        light: float32 [S, S, 3], linear light that leaves the surface, 0 to about 1.
        surface: bool [S, S], where the product is.
        extra: values of the product that its defects use, such as angles, thread spacing and colours.
        blur: standard deviation of the lens blur in scene pixels.
        noise: standard deviation of the sensor noise in linear light.
    """

    light: Field
    surface: NDArray[np.bool_]
    extra: dict[str, Any]
    blur: float = 1.0
    noise: float = 0.008

    def copy(self) -> "Scene":
        """Return the scene with a copy of its light."""
        return Scene(self.light.copy(), self.surface, self.extra, self.blur, self.noise)


def photograph(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the photograph uint8 [S/2, S/2, 3] of a scene: lens blur, 2x2 binning, sensor noise, gamma 2.2."""
    size = scene.light.shape[0] // SCALE
    light = ndimage.gaussian_filter(scene.light, (scene.blur, scene.blur, 0), truncate=2.5)
    light = light[0::2] + light[1::2]
    light = (light[:, 0::2] + light[:, 1::2]) / SCALE**2
    shot = rng.standard_normal((size, size, 3), dtype=np.float32)
    gray = rng.standard_normal((size, size, 1), dtype=np.float32)
    # Most of the noise is common to the channels, as after demosaicing.
    light = light + scene.noise * (0.5 * shot + 0.8 * gray) * np.sqrt(np.maximum(light, 0) + 0.05) * 1.4
    encoded = np.clip(light, 0, 1) ** (1 / 2.2)
    return np.round(encoded * 255).astype(np.uint8)


def smooth_field(rng: np.random.Generator, cells: int, size: int) -> Field:
    """Return a smooth random field [size, size], about standard normal, with `cells` bumps across."""
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    step = size / cells
    low, high = step / size * cells, (step + size) / size * cells
    large = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC, box=(low, low, high, high))
    return np.asarray(large, dtype=np.float32)


def curve(
    rng: np.random.Generator, start: NDArray[np.float64], angle: float, length: float, bend: float, points: int = 12
) -> NDArray[np.float64]:
    """Return a random curve [points, 2] (row, column).

    Args:
        rng: source of randomness.
        start: first point.
        angle: direction at the start in radians.
        length: in scene pixels.
        bend: total change of the direction in radians, about.
        points: number of points.
    """
    drift = np.cumsum(rng.normal(0, 1, points - 1)) / np.sqrt(points) * bend + rng.normal(0, 0.5) * bend * np.linspace(
        -0.5, 0.5, points - 1
    )
    heading = angle + drift
    steps = np.stack([np.sin(heading), np.cos(heading)], axis=1) * length / (points - 1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def curve_distance(
    points: NDArray[np.float64], size: int, margin: float
) -> tuple[tuple[slice, slice], Field, Field, Field]:
    """Return the distance to a curve in the window around it.

    Args:
        points: [N, 2] (row, column).
        size: side of the scene.
        margin: pixels of the window on each side of the curve.

    Returns:
        The window (two slices), and three float32 arrays of its shape: distance, side of the curve (-1 or 1), and
        position of the nearest point along the curve (0 to 1).
    """
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    window = (slice(*np.clip([low[0], high[0]], 0, size)), slice(*np.clip([low[1], high[1]], 0, size)))
    row, column = np.mgrid[window].astype(np.float32)
    best = np.full(row.shape, np.inf, dtype=np.float32)
    along = np.zeros_like(best)
    side = np.ones_like(best)
    count = len(points) - 1
    for index in range(count):
        (r0, c0), (r1, c1) = points[index], points[index + 1]
        dr, dc = r1 - r0, c1 - c0
        t = np.clip(((row - r0) * dr + (column - c0) * dc) / max(dr * dr + dc * dc, 1e-9), 0, 1)
        distance = (row - r0 - t * dr) ** 2 + (column - c0 - t * dc) ** 2
        closer = distance < best
        best = np.where(closer, distance, best)
        along = np.where(closer, (index + t) / count, along)
        side = np.where(closer, np.sign((column - c0) * dr - (row - r0) * dc), side)
    return window, np.sqrt(best), side.astype(np.float32), along.astype(np.float32)


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, size: int, rough: float) -> Field:
    """Return the signed depth in pixels [size, size] inside an irregular outline (negative outside).

    Args:
        rng: source of randomness.
        centre: (row, column).
        radius: mean radius in pixels.
        size: side of the scene.
        rough: relative height of the irregularities.
    """
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.7)
    waves = [(order, rough * rng.normal() / order**0.8, rng.uniform(0, 2 * np.pi)) for order in range(2, 9)]
    extent = 1.9 * stretch * radius + 10 * stretch  # No caller needs the depth farther outside.
    low = np.clip(np.floor(np.asarray(centre) - extent), 0, size).astype(int)
    high = np.clip(np.ceil(np.asarray(centre) + extent) + 1, 0, size).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    row, column = np.mgrid[window].astype(np.float32)
    dr, dc = row - np.float32(centre[0]), column - np.float32(centre[1])
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y = (dc * cos + dr * sin) / stretch, (dr * cos - dc * sin) * stretch
    theta = np.arctan2(y, x)
    outline = np.ones_like(theta)
    for order, height, phase in waves:
        outline += height * np.cos(order * theta + phase)
    depth = np.full((size, size), -1e3, dtype=np.float32)
    depth[window] = radius * np.clip(outline, 0.35, 1.9) - np.hypot(x, y)
    return depth


def smoothstep(values: NDArray[np.floating], low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high`, and the cubic 3t^2 - 2t^3 between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def add_fibres(scene_light: Field, rng: np.random.Generator, count: int, colour: NDArray[np.float32]) -> None:
    """Add lint to a scene in place: short, thin, curved fibres, which are no defect.

    Args:
        scene_light: float32 [S, S, 3].
        rng: source of randomness.
        count: number of fibres.
        colour: float32 [3].
    """
    size = scene_light.shape[0]
    for _ in range(count):
        start = rng.uniform(0, size, 2)
        points = curve(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(8, 36), rng.uniform(0.5, 3.0), 8)
        window, distance, _, _ = curve_distance(points, size, 3)
        alpha = (rng.uniform(0.15, 0.6) * np.exp(-((distance / rng.uniform(0.6, 1.0)) ** 2)))[..., None]
        scene_light[window] += alpha * (colour - scene_light[window])


def add_dust(scene_light: Field, rng: np.random.Generator, count: int) -> None:
    """Add dust to a scene in place: `count` small bright or dark specks, which are no defect."""
    size = scene_light.shape[0]
    for _ in range(count):
        r, c, s = int(rng.integers(5, size - 5)), int(rng.integers(5, size - 5)), rng.uniform(0.6, 1.6)
        row, column = np.mgrid[-4:5, -4:5].astype(np.float32)
        speck = np.exp(-(row**2 + column**2) / (2 * s * s))[..., None] * np.float32(rng.uniform(0.15, 0.6))
        target = np.float32(0.75 if rng.random() < 0.6 else 0.05)
        scene_light[r - 4 : r + 5, c - 4 : c + 5] += speck * (target - scene_light[r - 4 : r + 5, c - 4 : c + 5])
