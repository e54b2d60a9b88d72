"""A plain-woven fabric, and its defects: snag (a thread pulled out), stain, cut."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.data.demo.camera import (
    Field,
    Scene,
    add_dust,
    add_fibres,
    blob,
    curve,
    curve_distance,
    smooth_field,
    smoothstep,
)


def render_scene(rng: np.random.Generator, size: int) -> Scene:
    """Return the fabric under oblique light, with random colour, thread spacing, tilt, slubs, light and lint.

    Args:
        rng: source of randomness.
        size: side of the scene in pixels.
    """
    pitch = rng.uniform(12, 16)
    tilt = rng.normal(0, 0.06)
    row, column = np.mgrid[:size, :size].astype(np.float32)
    row, column = row + 3.0 * smooth_field(rng, 3, size), column + 3.0 * smooth_field(rng, 3, size)
    cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
    u = (column * cos + row * sin) / pitch + rng.uniform(0, 2) + 40
    v = (row * cos - column * sin) / pitch + rng.uniform(0, 2) + 40
    warp_index, weft_index = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    across_warp, across_weft = 2 * (u - warp_index) - 1, 2 * (v - weft_index) - 1
    warp_on_top = (warp_index + weft_index) % 2 == 0

    # A thread is a tube that arches over its crossing: its height falls to both sides and, less, to both ends.
    across = np.where(warp_on_top, across_warp, across_weft)
    along = np.where(warp_on_top, across_weft, across_warp)
    width = 0.97 + 0.05 * _per_thread(rng, warp_index, weft_index, warp_on_top)
    tube = np.sqrt(np.clip(1 - (across / width) ** 2, 0, 1))
    height = (tube * (1 - 0.45 * along**2)).astype(np.float32)

    fibres = rng.standard_normal((size, size), dtype=np.float32)
    twist = np.sin(2 * np.pi * (2.2 * along + 0.9 * across)).astype(np.float32)
    along_rows = ndimage.uniform_filter1d(fibres, 7, axis=0)
    along_columns = ndimage.uniform_filter1d(fibres, 7, axis=1)
    fibre_texture = np.where(warp_on_top, along_rows, along_columns) * 0.22 + 0.07 * twist

    light_angle = rng.normal(-2.2, 0.35)
    slope_r, slope_c = np.gradient(height)
    shading = 0.20 + 0.85 * height - pitch * 0.11 * (np.sin(light_angle) * slope_r + np.cos(light_angle) * slope_c)
    shade = (
        np.clip(shading, 0.12, 1.4)
        * (1 + fibre_texture)
        * (1 + 0.08 * _per_thread(rng, warp_index, weft_index, warp_on_top))
    )

    base = (np.array([0.22, 0.27, 0.36]) * rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.04, 3))).astype(np.float32)
    other = (base * rng.uniform(1.12, 1.35) * (1 + rng.normal(0, 0.03, 3))).astype(np.float32)
    colour = np.where(warp_on_top[..., None], base, other)
    lamp = _lamp(rng, size)
    dye = 1 + 0.035 * smooth_field(rng, 3, size)
    light = (colour * (shade * lamp * dye)[..., None]).astype(np.float32)
    add_fibres(light, rng, int(rng.poisson(1.3)), np.full(3, rng.uniform(0.45, 0.85), np.float32))
    add_dust(light, rng, int(rng.poisson(1.5)))
    extra = {
        "pitch": pitch,
        "tilt": tilt,
        "light_angle": light_angle,
        "thread": (base * 1.7).astype(np.float32),
        "lamp": lamp,
    }
    return Scene(light, np.ones((size, size), bool), extra, rng.uniform(0.7, 1.1), rng.uniform(0.008, 0.016))


def snag(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a snag in place and return its mask: a pulled loop above the fabric, its shadow, and the dark gap it left."""
    size, pitch = scene.light.shape[0], scene.extra["pitch"]
    visible = np.exp(rng.uniform(np.log(0.45), 0))
    angle = scene.extra["tilt"] + rng.integers(0, 2) * np.pi / 2 + rng.normal(0, 0.06)
    centre = rng.uniform(0.15, 0.85, 2) * size
    direction = np.array([np.sin(angle), np.cos(angle)])
    run_length = rng.uniform(2.5, 10) * pitch
    start = centre - direction * run_length / 2
    mask = np.zeros((size, size), dtype=bool)

    run = start + np.linspace(0, 1, 8)[:, None] * direction * run_length + rng.normal(0, 0.3, (8, 2))
    window, distance, _, along = curve_distance(run, size, pitch)
    width = 0.26 * pitch * np.clip(4 * along * (1 - along), 0, 1) ** 0.5
    dark = smoothstep(-distance, -width.mean() - 1.5, -0.4) * (distance < width + 2)
    scene.light[window] *= (1 - 0.85 * visible * dark)[..., None]
    mask[window] |= dark > 0.15

    bulge = rng.uniform(0.8, 3.2) * pitch * rng.choice([-1, 1])
    normal = np.array([direction[1], -direction[0]])
    t = np.linspace(0, 1, 22)
    wide = rng.uniform(0.2, 0.55)
    middle = rng.uniform(0.3, 0.7)
    position = middle + wide * (t - 0.5 - rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * t))
    loop = start + direction * (position * run_length)[:, None] + normal * (bulge * np.sin(np.pi * t) ** 0.9)[:, None]
    loop = loop + np.cumsum(rng.normal(0, 0.25, loop.shape), axis=0)
    radius = rng.uniform(0.2, 0.32) * pitch
    light_from = np.array([np.sin(scene.extra["light_angle"]), np.cos(scene.extra["light_angle"])])

    window, distance, _, along = curve_distance(loop - light_from * radius * 1.3, size, 3 * radius)
    shadow = smoothstep(-distance, -1.5 * radius, -0.3 * radius)
    scene.light[window] *= (1 - 0.75 * visible * shadow)[..., None]
    mask[window] |= shadow > 0.15

    window, distance, side, along = curve_distance(loop, size, 2 * radius)
    tube = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
    tangent = np.gradient(loop, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    at = np.clip((along * (len(loop) - 1)).round().astype(int), 0, len(loop) - 1)
    across_light = (-tangent[at, 0] * light_from[1] + tangent[at, 1] * light_from[0]) * side * distance / radius
    ply = 1 + 0.2 * np.sin(2 * np.pi * (along * np.abs(run_length) / 5 + side * distance / radius * 0.5))
    shade = (0.4 + 0.65 * tube + 0.35 * across_light) * ply * scene.extra["lamp"][window]
    thread = scene.extra["thread"] * np.clip(shade, 0.1, 1.6)[..., None]
    alpha = (visible * smoothstep(tube, 0.05, 0.5))[..., None]
    scene.light[window] += alpha * (thread - scene.light[window])
    mask[window] |= tube > 0.05
    return mask


def stain(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a stain in place and return its mask: a dried spill, often with a dark rim and splashes."""
    size = scene.light.shape[0]
    strength = np.exp(rng.uniform(np.log(0.12), np.log(1.0)))
    tint = np.array([[0.25, 0.55, 1.0], [0.8, 0.85, 0.9], [1.0, 0.7, 0.45]])[rng.integers(0, 3)] * rng.uniform(
        0.8, 1.1, 3
    )
    radius = np.exp(rng.uniform(np.log(8), np.log(46)))
    centre = rng.uniform(0.1, 0.9, 2) * size
    depth = blob(rng, (centre[0], centre[1]), radius, size, 0.22)
    for _ in range(int(rng.poisson(1.2))):
        angle, far = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.4, 2.2)
        drop = (centre[0] + far * np.sin(angle), centre[1] + far * np.cos(angle))
        depth = np.maximum(depth, blob(rng, drop, rng.uniform(0.1, 0.3) * radius + 1, size, 0.1))
    soft = rng.uniform(2, 4)
    body = smoothstep(depth, -0.5, soft)
    rim = np.exp(-(((depth - soft) / (0.12 * radius + 1.5)) ** 2)) * body
    blotch = np.clip(1 + 0.2 * smooth_field(rng, 7, size), 0.3, 1.7)
    density = strength * (body * blotch * rng.uniform(0.5, 1.0) + rim * rng.uniform(0, 0.7))
    scene.light *= np.exp(-density[..., None] * tint).astype(np.float32)
    return depth > 0


def cut(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a cut in place and return its mask: a dark opening between severed threads, with frayed ends over it."""
    size, pitch = scene.light.shape[0], scene.extra["pitch"]
    length = np.exp(rng.uniform(np.log(1.6), np.log(9))) * pitch
    gape = np.exp(rng.uniform(np.log(0.12), np.log(0.6))) * pitch
    angle = rng.uniform(0, np.pi)
    centre = rng.uniform(0.15, 0.85, 2) * size
    start = centre - np.array([np.sin(angle), np.cos(angle)]) * length / 2
    points = curve(rng, start, angle, length, rng.uniform(0.05, 0.5))
    window, distance, _, along = curve_distance(points, size, gape + 4)
    jag = 1 + 0.35 * smooth_field(rng, 40, size)[window]
    width = gape * np.sqrt(np.clip(4 * along * (1 - along), 0, 1)) * jag
    depth = width - distance
    opening = smoothstep(depth, -0.6, 1.2)
    deep = rng.uniform(0.75, 0.97)
    ground = scene.light[window] * (1 - deep) + 0.004
    lip = np.exp(-((depth / 1.6) ** 2)) * (depth < 0.8) * (depth > -3) * rng.uniform(0.05, 0.35)
    scene.light[window] *= (1 + lip)[..., None]
    scene.light[window] += opening[..., None] * (ground - scene.light[window])
    mask = np.zeros((size, size), dtype=bool)
    mask[window] |= depth > -1.0
    for _ in range(int(rng.integers(2, 3 + int(length / 6)))):
        fibre_start = points[rng.integers(1, len(points) - 1)] + rng.normal(0, 0.3 * gape, 2)
        fibre = curve(
            rng,
            fibre_start,
            angle + np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.5),
            rng.uniform(0.6, 2.2) * gape,
            0.8,
            5,
        )
        window, distance, _, _ = curve_distance(fibre, size, 3)
        alpha = (rng.uniform(0.4, 0.9) * np.exp(-((distance / 0.75) ** 2)))[..., None]
        thread = scene.extra["thread"] * scene.extra["lamp"][window][..., None]
        scene.light[window] += alpha * (thread - scene.light[window])
        mask[window] |= distance < 1.2
    return mask


DEFECTS = {"snag": snag, "stain": stain, "cut": cut}


def _per_thread(
    rng: np.random.Generator, warp: NDArray[np.int32], weft: NDArray[np.int32], warp_on_top: NDArray[np.bool_]
) -> Field:
    """Return one value per thread, standard normal with a few heavier threads (slubs)."""
    tables = rng.standard_normal((2, 128)).astype(np.float32)
    tables += (rng.random(tables.shape) < 0.03) * rng.choice([-2.0, 2.0], tables.shape).astype(np.float32)
    return np.where(warp_on_top, tables[0][warp % 128], tables[1][weft % 128])


def _lamp(rng: np.random.Generator, size: int) -> Field:
    """Return uneven lighting [size, size]: a slope across the field, and a decrease from the centre of the lamp."""
    row, column = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)
    slope = rng.normal(0, 0.14, 2).astype(np.float32)
    centre = rng.normal(0, 0.15, 2).astype(np.float32)
    fall = rng.uniform(0.1, 0.45) * ((row - centre[0]) ** 2 + (column - centre[1]) ** 2)
    return ((1 + slope[0] * row + slope[1] * column - fall) * rng.uniform(0.85, 1.12)).astype(np.float32)
