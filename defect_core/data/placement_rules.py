"""Placement of a defect by a rule: only inside a region, with limited rotation and scale, or like the real examples.

`place_defect` is used where no rule and no region exist. Here each candidate is a rotation, a size and a position:

- `anywhere`: the rotation relative to the product is random up to the limit, the position is random in the region. Of
  the valid candidates one is chosen by the similarity of its surroundings, as in `place_defect`.
- `like_examples`: position and angle are sampled from a kernel density estimate over the real examples (Gaussian
  kernels, bandwidth by Scott 1992), relative to the pose of the product. The first candidate that fits is used, so
  nothing else changes the distribution.

If no candidate fits, all positions are tested for some rotations and for the smallest size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from defect_core.data.foreground import Pose, estimate_pose, find_foreground, has_texture_direction
from defect_core.data.masks import bounding_box, touches_border
from defect_core.data.placement_geometry import (
    Context,
    Matrix,
    Placement,
    choose_by_context,
    context_difference,
    is_within,
    lookup,
    mask_middle,
    move_example,
    outline_points,
    sample_points,
    similarity,
    transform_points,
)
from defect_core.data.placement_settings import PlacementRule

MAX_KERNEL_EXAMPLES = 24
"""Largest number of examples of the kernel density estimate of `like_examples`."""

# The values below have no published source. They were set by hand.
_CANDIDATES = 96
_DEFAULT_SCALE = (0.8, 1.2)
_MIN_FOREGROUND = 0.85  # of the part of the mask that is on the product in the example
_MIN_ELONGATION = 1.3  # below it the long axis of a product or of a mask is not reliable
_MIN_SKEWNESS = 0.15  # below it both ends of a product look the same
_MIN_SPREAD, _MIN_ANGLE = 0.02, np.deg2rad(3)  # smallest bandwidths: a fraction of the product's size, radians
_SEARCH_ANGLES = 7
_CANVAS_MARGIN = 4  # pixels by which a canvas is larger than the mask on it
_MIRROR_PROBABILITY = 0.5
_QUARTER_TURN = np.pi / 2
_TEXTURE_JITTER, _DIRECTION_JITTER = np.deg2rad(10), np.deg2rad(3)


@dataclass(frozen=True)
class Scene:
    """An image, where its product is, and for an example where its defect is.

    Attributes:
        image: uint8 [H, W, 3].
        product: bool [H, W], from `find_foreground`.
        mask: bool [H, W], not empty; None for a normal image.
    """

    image: NDArray[np.uint8]
    product: NDArray[np.bool_]
    mask: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> "Scene":
        """Return the scene of an image, with its foreground."""
        return cls(image, find_foreground(image), mask)


@dataclass(frozen=True)
class _Frame:
    """Coordinates relative to a product: origin, direction, and unit of length per axis."""

    origin: NDArray[np.float64]
    angle: float
    unit: NDArray[np.float64]

    def to_product(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        return (_rotation(-self.angle) @ (point - self.origin)) / self.unit

    def to_image(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.origin + _rotation(self.angle) @ (point * self.unit)


def place_by_rule(
    source: Scene,
    target: Scene,
    rng: np.random.Generator,
    rule: PlacementRule | None = None,
    allowed: NDArray[np.bool_] | None = None,
    examples: Sequence[Scene] = (),
) -> Placement | None:
    """Return a defect moved onto the target; None if it fits nowhere. No pixel of its mask is outside the region.

    A mask that its image border cuts stays at that border or, without a limit of rotation, moves to the opposite one.

    Args:
        source: the example that is moved, with its mask.
        target: the normal image.
        rng: source of all randomness.
        rule: rotation, scale and mode; None for the defaults. Its `region` is part of `allowed`.
        allowed: bool [H, W] of the target, where the mask may be; None: everywhere.
        examples: real examples with masks for `like_examples`, at most `MAX_KERNEL_EXAMPLES`.

    Raises:
        ValueError: the source has no mask, or `allowed` has another size than the target.
    """
    size = target.image.shape[:2]
    region = np.ones(size, bool) if allowed is None else allowed
    if source.mask is None or region.shape != size:
        raise ValueError(f"expected a source with a mask and a region of {size}, found {region.shape}")
    if not region.any():
        return None
    planner = _Planner(source, source.mask, target, region, rule or PlacementRule(), examples, rng)
    if touches_border(source.mask):
        return _first_fit(planner, planner.border_candidates())
    if planner.rule.mode == "like_examples":
        return _first_fit(planner, planner.example_candidates()) or _search(planner)
    return _best_fit(planner, planner.candidates()) or _search(planner)


class _Planner:
    """Generates candidates for one placement and checks them."""

    def __init__(
        self,
        source: Scene,
        mask: NDArray[np.bool_],
        target: Scene,
        region: NDArray[np.bool_],
        rule: PlacementRule,
        examples: Sequence[Scene],
        rng: np.random.Generator,
    ) -> None:
        self.source, self.mask, self.target, self.region, self.rule, self.rng = source, mask, target, region, rule, rng
        self.size = target.image.shape[:2]
        self.is_object = not (source.product.all() or target.product.all())
        self.source_frame = self._frame(source)
        self.target_frame = self._frame(target, reference=self.source_frame.angle)
        self.base = _base_zoom(mask.shape, self.size)
        self.scale = np.log(rule.scale or _DEFAULT_SCALE)
        self.limit = np.pi if rule.rotation is None else np.deg2rad(rule.rotation)
        self.turn = self.target_frame.angle - self.source_frame.angle  # rotation that follows the product
        self.inside, self.ring = sample_points(mask, rng)
        self.outline = outline_points(mask)
        self.middle = mask_middle(mask)
        self.examples = [example for example in examples if example.mask is not None and example.mask.any()]

    def fit(self, matrix: Matrix) -> Placement | None:
        """Return the placement of a candidate; None if the border cuts it or a pixel is outside the region."""
        if not is_within(transform_points(matrix, self.outline), self.size):
            return None
        if not lookup(self.region, transform_points(matrix, self.inside)).all():
            return None
        placement = move_example(self.source.image, self.mask, self.target.image, matrix)
        return None if (placement.mask & ~self.region).any() else placement

    def candidates(self) -> Iterator[Matrix]:
        """Yield matrices of the mode `anywhere`; the first is the position in the source, or on its product."""
        ratio = np.array(self.size[::-1]) / np.array(self.mask.shape[::-1])
        own = self.target_frame.to_image(self.source_frame.to_product(self.middle))
        first = np.clip(self.base, *np.exp(self.scale) * self.base)
        yield similarity(self.turn, first, False, self.middle, own if self.is_object else self.middle * ratio)
        positions = np.flatnonzero(self.region & self.target.product)
        if not positions.size:
            positions = np.flatnonzero(self.region)
        has_direction = has_texture_direction(self.target.image, self.target.product)
        for _ in range(_CANDIDATES):
            mirrored = self.rule.rotation is None and self.rng.random() < _MIRROR_PROBABILITY
            angle = self.turn + self.rng.uniform(-self.limit, self.limit)
            if self.rule.rotation is None and not self.is_object:
                # A texture keeps its direction, or is turned by quarters (see `place_defect`).
                quarters = 2 * self.rng.integers(2) if has_direction else self.rng.integers(4)
                jitter = _DIRECTION_JITTER if has_direction else _TEXTURE_JITTER
                angle = quarters * _QUARTER_TURN + self.rng.uniform(-jitter, jitter)
            position = int(positions[self.rng.integers(positions.size)])
            to = np.array([position % self.size[1] + 0.5, position // self.size[1] + 0.5])
            yield similarity(angle, self._zoom(), mirrored, self.middle, to)

    def example_candidates(self) -> Iterator[Matrix]:
        """Yield matrices whose position and angle follow the real examples."""
        kernel = _Kernel(self._kernel_examples(), self.rng)
        own = _axis(self.mask)
        for _ in range(2 * _CANDIDATES):
            point, axis = kernel.sample(self.rng)
            deviation = kernel.angle_spread * self.rng.standard_normal()
            if own is not None and axis is not None:
                # Axes have no direction, so the smaller of the two rotations is used.
                deviation += _half_turn(axis - (own - self.source_frame.angle))
            angle = self.turn + np.clip(deviation, -self.limit, self.limit)
            yield similarity(angle, self._zoom(), False, self.middle, self.target_frame.to_image(point))

    def border_candidates(self) -> Iterator[Matrix]:
        """Yield matrices for a mask that the border of its image cuts; each axis is treated separately."""
        top, left, bottom, right = bounding_box(self.mask)
        frame = np.array(self.mask.shape[::-1], dtype=np.float64)
        ratio = np.array(self.size[::-1]) / frame
        kernel = _Kernel(self._kernel_examples(whole_image=True), self.rng)
        follows = self.rule.mode == "like_examples"
        for _ in range(2 * _CANDIDATES):
            point, zoom = kernel.sample(self.rng)[0], np.exp(self.rng.uniform(*self.scale))
            factors, shifts = np.ones(2), np.zeros(2)
            for axis, (low, high) in enumerate(((left, right), (top, bottom))):
                at_start, at_end = low == 0, high == frame[axis]
                if not (at_start and at_end):
                    factors[axis] = min(zoom, frame[axis] / (high - low))
                    room = max(0.0, frame[axis] - factors[axis] * (high - low))
                    free = self.rng.uniform(0, room)
                    if follows:
                        free = np.clip(point[axis] * frame[axis] - factors[axis] * (high - low) / 2, 0, room)
                    start = 0.0 if at_start else room if at_end else free
                    shifts[axis] = start - factors[axis] * low
                is_free = self.rule.rotation is None and not follows
                if is_free and self.rng.random() < _MIRROR_PROBABILITY:
                    factors[axis], shifts[axis] = -factors[axis], frame[axis] - shifts[axis]
            yield np.column_stack([np.diag(ratio * factors), ratio * shifts])

    def search_angles(self) -> list[float]:
        """Return rotations within the limit, the smallest first."""
        steps = np.linspace(0, min(self.limit, _QUARTER_TURN), _SEARCH_ANGLES)
        return [self.turn + sign * step for step in steps for sign in ((1, -1) if step else (1,))]

    def _zoom(self) -> float:
        return float(self.base * np.exp(self.rng.uniform(*self.scale)))

    def _frame(self, scene: Scene, whole_image: bool = False, reference: float = 0.0) -> _Frame:
        """Return the coordinates relative to the product; relative to the image if the product fills it.

        Args:
            scene: the image.
            whole_image: whether they are relative to the image in any case.
            reference: a direction; if both ends of the product look the same, the nearer direction is used.
        """
        if whole_image or not self.is_object:
            return _Frame(np.zeros(2), 0.0, np.array(scene.image.shape[1::-1], dtype=np.float64))
        pose = estimate_pose(scene.product)
        length = np.sqrt(scene.product.sum())
        return _Frame(pose.centre, _direction(scene.product, pose, reference), np.array([length, length]))

    def _kernel_examples(self, whole_image: bool = False) -> list[tuple[NDArray[np.float64], float | None]]:
        """Return the position and the angle of examples relative to their product; the source without examples."""
        found = []
        for example in self.examples or [self.source]:
            mask = self.mask if example.mask is None else example.mask
            frame, axis = self._frame(example, whole_image, self.source_frame.angle), _axis(mask)
            found.append((frame.to_product(mask_middle(mask)), None if axis is None else axis - frame.angle))
        return found


class _Kernel:
    """A kernel density estimate over positions and angles."""

    def __init__(self, examples: Sequence[tuple[NDArray[np.float64], float | None]], rng: np.random.Generator) -> None:
        self.examples = examples
        points = np.array([point for point, _ in examples])
        self.spread = np.maximum(_MIN_SPREAD, points.std(axis=0) * len(examples) ** (-1 / 6))
        axes = np.array([axis for _, axis in examples if axis is not None])
        self.angle_spread = _MIN_ANGLE
        if axes.size > 1:  # The angles of axes are doubled, so that 179 and 1 degrees are near.
            length = min(1.0, max(1e-6, float(np.abs(np.exp(2j * axes).mean()))))
            deviation = np.sqrt(-2 * np.log(length)) / 2
            self.angle_spread = max(_MIN_ANGLE, min(deviation, _QUARTER_TURN) * len(axes) ** (-1 / 5))

    def sample(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], float | None]:
        """Return a position and the angle of the example that it is near to."""
        point, axis = self.examples[int(rng.integers(len(self.examples)))]
        return point + self.spread * rng.standard_normal(2), axis


def _first_fit(planner: _Planner, candidates: Iterator[Matrix]) -> Placement | None:
    return next((placement for matrix in candidates if (placement := planner.fit(matrix)) is not None), None)


def _best_fit(planner: _Planner, candidates: Iterator[Matrix]) -> Placement | None:
    """Return a valid candidate chosen by its surroundings, preferably with the mask on the product."""
    required = _MIN_FOREGROUND * planner.source.product[planner.mask].mean()
    context, colours = Context(planner.target.image), Context(planner.source.image).at(planner.ring)
    fits: list[tuple[float, float, Matrix]] = []
    for matrix in candidates:
        inside = transform_points(matrix, planner.inside)
        if is_within(transform_points(matrix, planner.outline), planner.size) and lookup(planner.region, inside).all():
            on = float(lookup(planner.target.product, inside).mean())
            ring = transform_points(matrix, planner.ring)
            fits.append((on, context_difference(colours, context, ring, planner.size), matrix))
    valid = [(difference, matrix) for on, difference, matrix in fits if on >= required and on > 0]
    while valid:
        chosen = choose_by_context(valid, planner.rng)
        if (placement := planner.fit(chosen)) is not None:
            return placement
        valid = [entry for entry in valid if entry[1] is not chosen]
    return _first_fit(planner, (matrix for *_, matrix in sorted(fits, key=lambda entry: -entry[0])))


def _search(planner: _Planner) -> Placement | None:
    """Return a placement at a random position of those where the mask fits, or None if it fits nowhere."""
    first_row, first_column, last_row, last_column = bounding_box(planner.region)
    blocked = (~planner.region[first_row:last_row, first_column:last_column]).astype(np.float32)
    for scale in dict.fromkeys((float(np.clip(0.0, *planner.scale)), float(planner.scale[0]))):
        for angle in planner.search_angles():
            matrix = similarity(angle, planner.base * np.exp(scale), False, planner.middle, planner.middle)
            offset = np.floor(transform_points(matrix, planner.outline).min(axis=0)) - 1
            matrix[:, 2] -= offset
            moved = transform_points(matrix, planner.outline)
            width, height = np.ceil(moved.max(axis=0)).astype(int) + 1
            if height > blocked.shape[0] + _CANVAS_MARGIN or width > blocked.shape[1] + _CANVAS_MARGIN:
                continue
            canvas = np.zeros((height, width, 3), np.uint8)
            shape = move_example(planner.source.image, planner.mask, canvas, matrix).mask
            top, left, bottom, right = bounding_box(shape)
            kernel = shape[top:bottom, left:right][::-1, ::-1].astype(np.float32)
            if kernel.shape[0] > blocked.shape[0] or kernel.shape[1] > blocked.shape[1]:
                continue
            free = np.argwhere(fftconvolve(blocked, kernel, mode="valid") < 0.5)
            for index in planner.rng.permutation(len(free))[:_SEARCH_ANGLES]:
                row, column = free[index] + (first_row, first_column)
                shifted = matrix.copy()
                shifted[:, 2] += [column - left, row - top]
                placement = move_example(planner.source.image, planner.mask, planner.target.image, shifted)
                if not (placement.mask & ~planner.region).any():
                    return placement
    return None


def _base_zoom(source: tuple[int, ...], target: tuple[int, ...]) -> float:
    """Return the ratio of two image sizes of the same view, and 1 for crops (see `place_defect`)."""
    ratio = np.array(target) / np.array(source)
    return float(ratio.mean()) if abs(ratio[1] / ratio[0] - 1) < 0.02 else 1.0


def _direction(product: NDArray[np.bool_], pose: Pose, reference: float) -> float:
    """Return the direction of the long axis towards the end with the longer tail; 0 if the product has no long axis.

    Where both ends look the same, it is the direction that is nearer to `reference`.
    """
    if pose.elongation < _MIN_ELONGATION:
        return 0.0
    points = np.argwhere(product)[:, ::-1] + 0.5 - pose.centre
    along = points @ np.array([np.cos(pose.angle), np.sin(pose.angle)])
    skewness = float((along**3).mean() / max(along.std(), 1e-9) ** 3)
    if abs(skewness) < _MIN_SKEWNESS:
        return reference + _half_turn(pose.angle - reference)
    return pose.angle if skewness > 0 else pose.angle + np.pi


def _axis(mask: NDArray[np.bool_]) -> float | None:
    """Return the direction of the long axis of a mask in radians; None if it has none."""
    top, left, bottom, right = bounding_box(mask)
    pose = estimate_pose(mask[top:bottom, left:right])
    return pose.angle if pose.elongation >= _MIN_ELONGATION else None


def _half_turn(angle: float) -> float:
    """Return an angle between -90 and 90 degrees that differs by a multiple of 180 degrees."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
