"""Render single shaded objects in any pose on a plain background."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from defect_core.pretraining.corpus.noise import Array, colour, coordinates, fractal, soft_step


@dataclass
class Shape:
    """The geometry of an object; lengths are in units of half the image side.

    Attributes:
        distance: signed distance to the outline, negative inside, [S, S].
        height: relief, [S, S].
        paint: weight of the second colour, from 0 to 1, [S, S].
    """

    distance: Array
    height: Array
    paint: Array


def render_object(rng: np.random.Generator, size: int, gray: bool) -> tuple[Array, Array, Array, str, str]:
    """Render one random object on a background, in gray if `gray`.

    Returns:
        The image, float32 [S, S, 3] in [0, 1], where S is `size`; the background alone, same shape; the coverage of the
        object in [0, 1], [S, S]; the kind of object; and its name.
    """
    kind = str(rng.choice(list(OBJECTS)))
    build_shape, names = OBJECTS[kind]
    background = _render_background(rng, size, gray)
    offset = rng.uniform(0, 0.25)
    x, y = coordinates(size, (rng.uniform(-offset, offset), rng.uniform(-offset, offset)), rng.uniform(0, 2 * np.pi))
    scale = rng.uniform(0.55, 0.95)
    shape = build_shape(rng, x / scale, y / scale)
    coverage = soft_step(shape.distance * scale, 2.5 / size)
    if rng.random() < 0.4:
        shift = (rng.uniform(-0.05, 0.05) * size, rng.uniform(-0.05, 0.05) * size)
        shadow = ndimage.gaussian_filter(
            np.roll(coverage, (int(shift[0]), int(shift[1])), (0, 1)), rng.uniform(0.01, 0.05) * size
        )
        background = background * (1 - rng.uniform(0.2, 0.7) * shadow[..., None])
    shaded = _shade(rng, size, gray, shape)
    image = background * (1 - coverage[..., None]) + shaded * coverage[..., None]
    return np.clip(image, 0, 1), np.clip(background, 0, 1), coverage, kind, str(rng.choice(names))


def _render_background(rng: np.random.Generator, size: int, gray: bool) -> Array:
    kind = rng.random()
    base = colour(rng, gray or kind < 0.6, 0.02, 0.98)
    x, y = coordinates(size, (rng.uniform(-1, 1), rng.uniform(-1, 1)))
    light = 1 - rng.uniform(0, 0.15) * (x * x + y * y) + rng.uniform(0, 0.03) * fractal(rng, size, rng.uniform(0.3, 2))
    return (base * light[..., None]).astype(np.float32)


def _shade(rng: np.random.Generator, size: int, gray: bool, shape: Shape) -> Array:
    """Return the relief with Lambert and Blinn-Phong shading under one light and a textured albedo of two colours."""
    gray = gray or rng.random() < 0.4
    roughness = rng.uniform(0.0002, 0.003) * fractal(
        rng, size, rng.uniform(0.8, 1.6), rng.uniform(1, 12), rng.uniform(0, 3)
    )
    relief = ndimage.gaussian_filter(shape.height, 0.6) + roughness
    slope_y, slope_x = np.gradient(relief * size / 2)
    norm = np.sqrt(slope_x**2 + slope_y**2 + 1)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.4)
    light = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    diffuse = np.clip((-slope_x * light[0] - slope_y * light[1] + light[2]) / norm, 0, 1)
    half_vector = light + np.array([0, 0, 1])  # the camera looks along the normal of the image
    half_vector = half_vector / np.linalg.norm(half_vector)
    specular = np.clip(
        (-slope_x * half_vector[0] - slope_y * half_vector[1] + half_vector[2]) / norm, 0, 1
    ) ** rng.uniform(8, 60)
    first = colour(rng, gray, 0.15, 0.9)
    second = first * rng.uniform(0.4, 1.4) if rng.random() < 0.5 else colour(rng, gray, 0.1, 0.9)
    albedo = first + shape.paint[..., None] * (np.clip(second, 0, 1) - first)
    albedo = albedo * (1 + rng.uniform(0, 0.12) * fractal(rng, size, rng.uniform(0.3, 1.4)))[..., None]
    ambient = rng.uniform(0.15, 0.5)
    specular_strength = rng.uniform(0, 0.7) ** 1.5
    lit = ambient + (1.1 - ambient) * diffuse
    if rng.random() < 0.5:  # bare metal reflects bright and dark surroundings, here as bands
        direction = rng.uniform(0, 2 * np.pi)
        slope = (slope_x * np.cos(direction) + slope_y * np.sin(direction)) / norm
        reflection = np.interp(slope, np.linspace(-1, 1, 9), ndimage.gaussian_filter1d(rng.uniform(0, 1.6, 9), 0.6))
        lit += rng.uniform(0.2, 0.9) * (reflection - lit)
    return (albedo * lit[..., None] + specular_strength * specular[..., None]).astype(np.float32)


def _turned(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A turned disc with concentric grooves and steps, often with a bore."""
    r = np.hypot(x, y)
    height, paint = np.zeros_like(r), np.zeros_like(r)
    for _ in range(rng.integers(2, 7)):
        radius, width, rise = rng.uniform(0.05, 0.95), rng.uniform(0.01, 0.15), rng.uniform(-0.12, 0.12)
        u = (r - radius) / width
        height += rise * (np.exp(-(u**2)) if rng.random() < 0.5 else np.tanh(u))
        if rng.random() < 0.3:
            paint = np.maximum(paint, (np.abs(r - radius) < width) * 1.0)
    inner = rng.uniform(0.15, 0.8) if rng.random() < 0.6 else -1.0
    return Shape(np.maximum(r - 1, inner - r), height, paint)


def _gear(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A gear with a bore."""
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    teeth, depth = rng.integers(6, 25), rng.uniform(0.03, 0.15)
    edge = 1 - depth + depth * np.tanh(np.sin(angle * teeth) * rng.uniform(1, 5))
    distance = np.maximum(r - edge, rng.uniform(0.1, 0.45) - r)
    return Shape(distance, 0.08 * np.tanh((r - rng.uniform(0.4, 0.8)) / 0.03), (r < rng.uniform(0.3, 0.7)) * 1.0)


def _hexagon(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A nut with four to eight sides and a threaded hole."""
    sides = rng.choice([4, 5, 6, 6, 6, 8])
    angle = np.arctan2(y, x)
    r = np.hypot(x, y)
    flat = r * np.cos((angle + np.pi) % (2 * np.pi / sides) - np.pi / sides)
    hole = rng.uniform(0.25, 0.6)
    thread = 0.02 * np.sin(r * rng.uniform(60, 120)) * (r < hole + 0.1)
    height = -0.1 * np.clip((r - 0.75) * 4, 0, None) + thread
    return Shape(np.maximum(flat - 0.85, hole - r), height, (r < hole + 0.1) * 1.0)


def _stamped(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A rounded plate with punched holes and embossed rings."""
    wide, tall, corner = rng.uniform(0.5, 0.95), rng.uniform(0.25, 0.9), rng.uniform(0.02, 0.25)
    distance = _box(x, y, wide, tall, corner)
    height = -0.08 * np.tanh((distance + rng.uniform(0.02, 0.1)) / 0.03)
    for _ in range(rng.integers(0, 6)):
        cx, cy, radius = rng.uniform(-0.7, 0.7) * wide, rng.uniform(-0.7, 0.7) * tall, rng.uniform(0.04, 0.18)
        ring = np.hypot(x - cx, y - cy) - radius
        if rng.random() < 0.6:
            distance = np.maximum(distance, -ring)
        else:
            height += rng.choice([-0.06, 0.06]) * np.tanh(ring / 0.03)
    return Shape(distance, height, (np.abs(x - rng.uniform(-0.5, 0.5)) < rng.uniform(0, 0.2)) * 1.0)


def _moulded(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A moulded part with a superelliptic outline."""
    wide, tall, power = rng.uniform(0.6, 0.95), rng.uniform(0.35, 0.9), rng.uniform(2, 5)
    level = (np.abs(x / wide) ** power + np.abs(y / tall) ** power) ** (1 / power)
    height = rng.uniform(0.2, 0.6) * np.sqrt(np.clip(1 - level**2, 0, None))
    paint = ((x > rng.uniform(-0.3, 0.3)) if rng.random() < 0.5 else np.abs(np.sin(9 * x) * np.sin(11 * y)) > 0.8) * 1.0
    height -= rng.uniform(0, 0.05) * np.exp(-((y / 0.04) ** 2))
    if rng.random() < 0.4:
        mark = (np.abs(np.sin(x * 14 + rng.uniform(0, 6))) > 0.6) & (np.abs(y) < 0.12) & (np.abs(x) < wide * 0.6)
        paint, height = np.where(mark, 1.0, paint), height - 0.02 * mark
    return Shape((level - 1) * min(wide, tall), height, paint)


def _threaded(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A screw or bolt from the side: head, shank, a rounded or sharp thread, a blunt or pointed end."""
    radius, length = rng.uniform(0.1, 0.26), rng.uniform(0.8, 0.98)
    pitch, start = rng.uniform(0.05, 0.16), rng.uniform(-0.6, 0.25)
    # A helix rises by half a turn across the shank.
    helix_slope = rng.choice([-1, 1]) * pitch / radius * rng.uniform(0.15, 0.4)
    phase = (x + helix_slope * y) / pitch
    if rng.random() < 0.5:
        depth, turns = rng.uniform(0.1, 0.3), 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    else:  # thin turns on a thin core, as in wood screws
        depth = rng.uniform(0.25, 0.5)
        turns = np.clip(1 - np.abs(phase % 1 - 0.5) * 2 / rng.uniform(0.3, 0.9), 0, 1) ** rng.uniform(0.6, 1.2)
    is_pointed, tip_length = rng.random() < 0.7, rng.uniform(0.05, 0.6)
    taper = np.clip((length - x) / tip_length, 0, 1) ** rng.uniform(0.5, 1.1) if is_pointed else np.ones_like(x)
    threaded = np.clip((x - start) / 0.02, 0, 1)
    shaft = radius * taper * (1 - depth * threaded * (1 - turns))
    shaft = np.where(x < start, radius * rng.uniform(0.75, 1.0), shaft)
    head_end, head = -length + rng.uniform(0.12, 0.4), radius * rng.uniform(1.5, 2.6)
    cone = np.clip((head_end - x) / (head_end + length), 0, 1)
    profile = {
        "cone": cone,
        "disc": (x < head_end) * 1.0,
        "dome": np.sqrt(np.clip(1 - (1 - cone) ** 2, 0, 1)) * (x < head_end) * np.clip(2.5 - 1.5 * cone, 0, 1),
        "rim": np.clip(cone * rng.uniform(1.2, 2), 0, 1),
    }[str(rng.choice(["cone", "cone", "disc", "dome", "rim"]))]
    outline = np.where(np.abs(x) < length, np.maximum(shaft, head * profile), -1)
    distance = np.maximum(np.abs(y) - outline, np.abs(x) - length)
    height = np.sqrt(np.clip(outline**2 - y**2, 0, None)) * rng.uniform(0.5, 1)
    if rng.random() < 0.4:  # a drive recess, seen at an angle
        recess = np.hypot((x + length - 0.03) / rng.uniform(0.03, 0.1), y / (head * rng.uniform(0.3, 0.7))) - 1
        height = height - 0.1 * np.clip(-4 * recess, 0, 1)
    return Shape(distance, height, (x < head_end) * rng.uniform(0, 1) + 0.0 * x)


def _lathed(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A solid of revolution from the side, composed of cylinders, cones, grooves and beads."""
    knots = np.sort(rng.uniform(-0.95, 0.95, rng.integers(1, 6)))
    radii = rng.uniform(0.12, 0.6, len(knots) + 1)
    outline = np.full_like(x, radii[0])
    for knot, before, after in zip(knots, radii[:-1], radii[1:], strict=True):
        outline += (after - before) * np.clip((x - knot) / rng.choice([0.01, 0.03, rng.uniform(0.05, 0.4)]), 0, 1)
    for _ in range(rng.integers(0, 4)):
        outline += rng.uniform(-0.08, 0.06) * np.exp(-(((x - rng.uniform(-0.9, 0.9)) / rng.uniform(0.01, 0.06)) ** 4))
    if rng.random() < 0.3:  # a knurled section
        outline += 0.012 * np.sin(x * rng.uniform(50, 110)) * (np.abs(x - rng.uniform(-0.5, 0.5)) < 0.3)
    outline = np.clip(outline, 0.04, 0.7)
    distance = np.maximum(np.abs(y) - outline, np.abs(x) - 0.96)
    height = np.sqrt(np.clip(outline**2 - y**2, 0, None)) * rng.uniform(0.5, 1)
    band = rng.uniform(-0.6, 0.6)
    return Shape(distance, height, (np.abs(x - band) < rng.uniform(0, 0.3)) * 1.0)


def _grown(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A natural object such as a nut or a bean."""
    angle, r = np.arctan2(y, x), np.hypot(x, y)
    edge = rng.uniform(0.7, 0.95)
    for order in (2, 3, 4, 5):
        edge = edge * (1 + rng.uniform(-0.12, 0.12) / order * np.cos(order * angle + rng.uniform(0, 6.3)))
    level = r / edge
    height = rng.uniform(0.4, 0.8) * np.sqrt(np.clip(1 - level**2, 0, None))
    streak = np.sin(angle * rng.integers(10, 40) + 3 * np.sin(5 * r)) * np.clip(r, 0, 1)
    cap = (np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)) < rng.uniform(0.2, 0.6)) * 1.0
    paint = np.clip(0.3 + 0.3 * streak + 0.5 * cap, 0, 1)
    return Shape((level - 1) * 0.8, height + 0.01 * streak, paint)


def _legged(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A component with a rectangular body and pins."""
    wide, tall = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.45)
    body = _box(x, y + 0.4, wide, tall, 0.04)
    legs, width = rng.integers(2, 7), rng.uniform(0.03, 0.07)
    gap = 2 * wide * 0.8 / legs
    leg_x = (x + wide * 0.8) % gap - gap / 2
    pins = np.maximum(np.maximum(np.abs(leg_x) - width, np.abs(y - 0.4) - 0.55), np.abs(x) - wide * 0.8)
    if rng.random() < 0.4:
        pins = np.minimum(pins, np.maximum(np.maximum(np.abs(leg_x) - width, np.abs(y) - 0.9), np.abs(x) - wide * 0.8))
    inside = body < 0
    height = np.where(inside, 0.1 - 0.05 * np.hypot(x, y + 0.4), 0.03)
    return Shape(np.minimum(body, pins), height, (~inside) * 1.0)


def _bundle(rng: np.random.Generator, x: Array, y: Array) -> Shape:
    """A cable cross-section with one or several strands."""
    r = np.hypot(x, y)
    height, paint = 0.1 * np.sqrt(np.clip(1 - r**2, 0, None)), np.zeros_like(r)
    count, rotation = rng.integers(1, 5), rng.uniform(0, 6.3)
    offset, radius = (0.0, rng.uniform(0.3, 0.7)) if count == 1 else (0.5, rng.uniform(0.25, 0.42))
    for i in range(count):
        angle = rotation + 2 * np.pi * i / count
        u, v = x - offset * np.cos(angle), y - offset * np.sin(angle)
        ring = np.hypot(u, v)
        strand = 0.03 * np.abs(np.sin(u * 40 + v * 12) * np.sin(v * 40 - u * 12))
        height += (ring < radius) * (0.1 - 0.1 * np.tanh((radius * 0.7 - ring) / 0.03) + strand)
        paint = np.where(ring < radius * 0.7, 1.0, np.where(ring < radius, rng.uniform(0, 0.6), paint))
    return Shape(r - 1, height, paint)


def _box(x: Array, y: Array, wide: float, tall: float, corner: float) -> Array:
    u, v = np.abs(x) - wide + corner, np.abs(y) - tall + corner
    return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - corner


ShapeBuilder = Callable[[np.random.Generator, Array, Array], Shape]
# Kind of object: builder and names in captions.
OBJECTS: dict[str, tuple[ShapeBuilder, tuple[str, ...]]] = {
    "turned": (_turned, ("turned metal ring", "washer", "bearing", "turned disc", "bottle top", "valve seat")),
    "gear": (_gear, ("gear", "toothed wheel", "sprocket")),
    "hexagon": (_hexagon, ("metal nut", "hexagonal nut", "threaded nut")),
    "stamped": (_stamped, ("stamped plate", "metal bracket", "stamped part", "steel plate with holes")),
    "moulded": (_moulded, ("moulded plastic part", "capsule", "pill", "button", "plastic cap")),
    "threaded": (_threaded, ("screw", "metal screw", "bolt", "threaded rod")),
    "lathed": (_lathed, ("metal pin", "shaft", "spindle", "nozzle", "rivet", "bottle", "turned pin")),
    "grown": (_grown, ("nut", "bean", "grain", "seed")),
    "legged": (_legged, ("transistor", "chip with pins", "electronic component", "connector")),
    "bundle": (_bundle, ("cable", "cable cross-section", "bundle of wires")),
}
