"""A turned metal flange with a bolt circle on a plain background, and its defects: scratch, dent, chip."""

import numpy as np
from numpy.typing import NDArray

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

BOLTS = 6


def render_scene(rng: np.random.Generator, size: int) -> Scene:
    """Return the flange in a random pose, with turning marks and their highlights, chamfers, holes and shadow.

    Args:
        rng: source of randomness.
        size: side of the scene in pixels.
    """
    outer = rng.uniform(0.385, 0.415) * size
    centre = size / 2 + np.clip(rng.normal(0, 0.02, 2), -0.05, 0.05) * size
    pose = rng.uniform(0, 2 * np.pi)
    light_angle = rng.normal(-2.2, 0.4)
    row, column = np.mgrid[:size, :size].astype(np.float32)
    dr, dc = (row - centre[0]).astype(np.float32), (column - centre[1]).astype(np.float32)
    radius, theta = np.hypot(dr, dc), np.arctan2(dr, dc)

    holes, hole_side = _holes(centre, outer, pose, size, light_angle)
    depth = np.minimum(outer - radius, radius - 0.30 * outer)  # pixels to the nearest rim, positive inside
    depth = np.minimum(depth, holes)
    metal = smoothstep(depth, -0.7, 0.7)

    finish = _finish(rng, radius, theta, light_angle, size)
    hub = 0.52 * outer
    level = np.where(radius < hub, np.float32(1.1), np.float32(1))
    towards = np.cos(theta - light_angle)
    chamfer = smoothstep(3.0 - depth, 0, 2.0)
    rim_sign = np.where(outer - radius <= depth + 0.1, np.float32(1), np.float32(-1))
    bevel = np.where(holes <= depth + 0.1, -hole_side, towards * rim_sign)
    step = np.exp(-(((radius - hub) / 1.8) ** 2)).astype(np.float32)
    shade = (
        finish * level * (1 - 0.55 * chamfer) + chamfer * (0.20 + 0.28 * bevel) - 0.16 * step * (0.6 - 0.8 * towards)
    )
    steel = (np.array([0.50, 0.51, 0.53]) * rng.uniform(0.85, 1.1) * (1 + rng.normal(0, 0.015, 3))).astype(np.float32)
    lamp = _lamp(rng, size)
    part = steel * np.clip(shade, 0.02, None)[..., None]

    ground_colour = (np.array([0.055, 0.075, 0.10]) * rng.uniform(0.8, 1.3)).astype(np.float32)
    mottling = 1 + 0.05 * smooth_field(rng, 60, size) + 0.04 * smooth_field(rng, 4, size)
    shadow_length = rng.uniform(4, 8)
    offset = (float(np.sin(light_angle)) * shadow_length, float(np.cos(light_angle)) * shadow_length)
    shifted = np.hypot(dr + offset[0], dc + offset[1])
    away = np.minimum(outer - shifted, shifted - 0.30 * outer)
    shadow = smoothstep(away.astype(np.float32), -5, 4)
    ground = ground_colour * (mottling * (1 - 0.65 * shadow))[..., None]
    light = (ground + metal[..., None] * (part - ground)) * lamp[..., None]
    light = light.astype(np.float32)

    _smudges(light, rng, size)
    add_fibres(light, rng, int(rng.poisson(0.8)), np.full(3, rng.uniform(0.3, 0.8), np.float32))
    add_dust(light, rng, int(rng.poisson(2.5)))
    extra = {
        "centre": centre,
        "outer": outer,
        "depth": depth.astype(np.float32),
        "steel": steel,
        "light_angle": light_angle,
        "lamp": lamp,
        "ground": (ground * lamp[..., None]).astype(np.float32),
    }
    return Scene(light, depth > 0.7, extra, rng.uniform(0.8, 1.2), rng.uniform(0.006, 0.012))


def scratch(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a scratch in place and return its mask: one to three grooves, each with a bright and a dark flank."""
    size = scene.light.shape[0]
    start = _on_metal(scene, rng, 5)
    visible = np.exp(rng.uniform(np.log(0.3), np.log(1.7)))
    length = np.exp(rng.uniform(np.log(20), np.log(110)))
    width = rng.uniform(0.7, 1.9)
    out_angle = np.arctan2(*(start - scene.extra["centre"]))
    angle = out_angle + rng.uniform(-0.9, 0.9) + np.pi * rng.integers(0, 2)
    mask = np.zeros((size, size), dtype=bool)
    lamp = scene.extra["lamp"]
    bend = rng.uniform(0.02, 0.35)
    strokes = 1 + int(rng.random() < 0.3) + int(rng.random() < 0.15)
    for stroke in range(strokes):
        origin = start + (rng.normal(0, 4, 2) if stroke else 0)
        points = curve(rng, origin, angle + rng.normal(0, 0.05), length * rng.uniform(0.6, 1), bend, 14)
        window, distance, side, along = curve_distance(points, size, 5)
        if not distance.size:
            continue
        taper = np.clip(np.minimum(along, 1 - along) * 6, 0, 1) ** 0.5
        pressure = np.clip(1 + 0.35 * smooth_field(rng, 24, size)[window], 0.25, 1.6)
        half_width = width * (0.5 + 0.5 * taper)
        metal = scene.surface[window]
        core = np.exp(-((distance / half_width) ** 2)) * metal * (distance < 2 * half_width + 0.3)
        facing = np.sin(angle - scene.extra["light_angle"])
        flank = side * np.sign(facing) * np.clip(distance / half_width, 0, 1.2)
        gain = visible * pressure * taper * core * (0.45 - 0.75 * flank)
        bright = scene.extra["steel"] * lamp[window][..., None]
        scene.light[window] += (gain * (0.4 + 0.6 * abs(facing)))[..., None] * bright.astype(np.float32)
        np.maximum(scene.light, 0, out=scene.light)
        mask[window] |= (distance < 1.3 * half_width + 0.2) & metal & (taper > 0.12)
    return mask


def dent(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a dent in place and return its mask: a smooth hollow, dark towards the light and bright away from it."""
    size = scene.light.shape[0]
    radius = np.exp(rng.uniform(np.log(7.5), np.log(21)))
    visible = np.exp(rng.uniform(np.log(0.25), np.log(1.15)))
    centre = _on_metal(scene, rng, min(radius * 0.6, 12))
    inside = np.clip(blob(rng, (centre[0], centre[1]), radius, size, 0.06), 0, None)
    inside *= scene.surface
    top = max(float(inside.max()), 1e-3)
    bowl = (inside / top) ** 2
    bowl = bowl * bowl * (3 - 2 * bowl) if rng.random() < 0.5 else bowl
    slope_r, slope_c = np.gradient(bowl.astype(np.float32) * radius)
    tilt = np.sin(scene.extra["light_angle"]) * slope_r + np.cos(scene.extra["light_angle"]) * slope_c
    hollow = inside > 0
    # Light comes from `light_angle`, so the wall that faces away from the lamp is dark.
    gain = np.clip(1 + visible * (0.55 * tilt - 0.12 * bowl), 0.08, 2.6)
    glint = visible * 0.5 * np.clip(tilt - 0.45, 0, None)
    factor = np.where(hollow & scene.surface, gain, 1)
    add = np.where(hollow & scene.surface, glint, 0) * scene.extra["lamp"]
    scene.light *= factor[..., None].astype(np.float32)
    scene.light += (add[..., None] * scene.extra["steel"]).astype(np.float32)
    return hollow & scene.surface & (inside > 0.04 * top)


def chip(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Add a chip in place and return its mask: a piece broken out of an edge, with a rough fracture surface."""
    size = scene.light.shape[0]
    depth = scene.extra["depth"]
    edge = np.argwhere(np.abs(depth - 0.5) < 0.5)
    centre = edge[rng.integers(len(edge))].astype(np.float64)
    radius = np.exp(rng.uniform(np.log(5.5), np.log(20)))
    outline = blob(rng, (centre[0], centre[1]), radius, size, 0.16) + 0.9 * smooth_field(rng, 45, size)
    gone = smoothstep(outline, -0.5, 0.8) * smoothstep(depth, -0.7, 0.7)
    facets = smooth_field(rng, int(rng.integers(28, 50)), size)
    slope_r, slope_c = np.gradient(facets)
    tilt = np.sin(scene.extra["light_angle"]) * slope_r + np.cos(scene.extra["light_angle"]) * slope_c
    level = rng.uniform(0.12, 0.5)
    sunken = smoothstep(outline, 0, 0.7 * radius)
    face = np.clip(level * (1 - 0.5 * sunken) + 0.22 * tilt + 0.05 * facets, 0.015, 1.2)
    fracture = scene.extra["steel"] * (face * scene.extra["lamp"])[..., None]
    missing = (smoothstep(outline - depth, 0.15 * radius, 0.6 * radius) * (rng.random() < 0.6))[..., None]
    fracture = fracture + missing * (scene.extra["ground"] - fracture)
    scene.light += gone[..., None] * (fracture - scene.light).astype(np.float32)
    return gone > 0.2


DEFECTS = {"scratch": scratch, "dent": dent, "chip": chip}


def _holes(
    centre: NDArray[np.float64], outer: float, pose: float, size: int, light_angle: float
) -> tuple[Field, Field]:
    """Return the distance to the nearest hole (negative inside, 1e3 far away), and the cosine of light and its rim."""
    away = np.full((size, size), 1e3, dtype=np.float32)
    side = np.zeros((size, size), dtype=np.float32)
    for r, c, radius in _hole_list(centre, outer, pose):
        extent = radius + 16
        bounds = np.clip([r - extent, r + extent + 2, c - extent, c + extent + 2], 0, size).astype(int)
        window = (slice(*bounds[:2]), slice(*bounds[2:]))
        y, x = np.mgrid[window].astype(np.float32) - np.array([r, c], np.float32)[:, None, None]
        distance = np.hypot(y, x)
        closer = distance - radius < away[window]
        away[window] = np.where(closer, distance - radius, away[window])
        facing = (float(np.sin(light_angle)) * y + float(np.cos(light_angle)) * x) / (distance + 1e-3)
        side[window] = np.where(closer, facing, side[window])
    return away, side


def _hole_list(centre: NDArray[np.float64], outer: float, pose: float) -> list[tuple[float, float, float]]:
    angles = pose + np.arange(BOLTS) * 2 * np.pi / BOLTS
    holes = [
        (centre[0] + 0.75 * outer * np.sin(angle), centre[1] + 0.75 * outer * np.cos(angle), 0.085 * outer)
        for angle in angles
    ]
    pin = pose + np.pi / BOLTS
    holes.append((centre[0] + 0.75 * outer * np.sin(pin), centre[1] + 0.75 * outer * np.cos(pin), 0.035 * outer))
    return holes


def _finish(rng: np.random.Generator, radius: Field, theta: Field, light_angle: float, size: int) -> Field:
    """Return the reflectance of a turned face: rings of fine grooves, and the highlights across them."""
    samples = np.arange(2 * size)
    feed = rng.uniform(5.0, 7.5)  # scene pixels per turn of the lathe, wide enough to avoid aliasing
    profile = 0.05 * np.sin(2 * np.pi * samples / 2 / feed + rng.uniform(0, 6)) + 0.045 * rng.standard_normal(2 * size)
    profile += (rng.random(2 * size) < 0.02) * rng.normal(0, 0.16, 2 * size)  # tool marks, no defect
    profile = profile.astype(np.float32)
    position = radius * 2
    low = np.clip(position.astype(np.int32), 0, 2 * size - 2)
    part = position - low
    rings = (1 - part) * profile[low] + part * profile[low + 1]
    fan = np.abs(np.cos(theta - light_angle + rng.normal(0, 0.15)))
    sharp = rng.uniform(5, 12)
    glow = rng.uniform(0.35, 0.75) * fan**sharp + 0.12 * np.abs(np.sin(theta - light_angle)) ** 4
    cast = 0.03 * smooth_field(rng, 50, size)
    return ((0.52 + glow) * (1 + rings) + cast).astype(np.float32)


def _smudges(light: Field, rng: np.random.Generator, size: int) -> None:
    """Add oil films and water marks in place: low contrast and smooth edges, no defect."""
    for _ in range(int(rng.poisson(0.7))):
        place = rng.uniform(0.1, 0.9, 2) * size
        film = smoothstep(blob(rng, (place[0], place[1]), rng.uniform(8, 24), size, 0.15), -6, 10)
        light *= (1 + rng.choice([-1.0, 0.7]) * rng.uniform(0.04, 0.14) * film)[..., None].astype(np.float32)


def _on_metal(scene: Scene, rng: np.random.Generator, margin: float) -> NDArray[np.float64]:
    candidates = np.argwhere(scene.extra["depth"] > margin)
    if not len(candidates):
        candidates = np.argwhere(scene.surface)
    spot: NDArray[np.float64] = candidates[rng.integers(len(candidates))].astype(np.float64)
    return spot


def _lamp(rng: np.random.Generator, size: int) -> Field:
    row, column = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)
    slope = rng.normal(0, 0.16, 2).astype(np.float32)
    return ((1 + slope[0] * row + slope[1] * column) * rng.uniform(0.85, 1.15)).astype(np.float32)
