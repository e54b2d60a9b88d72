"""Shapes of annotations and how they become pixels.

Coordinates are (x, y) with x to the right and y down, and refer to the upright image. There are two conventions, and
formats differ in them:

| `origin` | the point (0, 0) is | a polygon has |
|---|---|---|
| `PIXEL_CENTERS` | the centre of the first pixel | the pixels of `cv2.fillPoly`: inside it or on its outline |
| `PIXEL_CORNERS` | the outer corner of the first pixel | the pixels whose centre is inside it, as in pycocotools |

Of the pixels whose centre is exactly on an edge, those at left and top edges belong to a polygon with pixel corners.

With pixel centres, mask -> `cv2.findContours` -> polygon -> mask gives the same mask, for masks without holes.
A polygon with pixel corners that is thinner than a pixel also has the pixels of its outline, so that none is lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from defect_core.data.mask_sources import MaskSource
from defect_core.errors import InputError

Origin = Literal["pixel_centers", "pixel_corners"]
PIXEL_CENTERS: Origin = "pixel_centers"
PIXEL_CORNERS: Origin = "pixel_corners"
_FRACTION_BITS = 8  # of OpenCV's fixed-point coordinates
_ROUNDING = 1e-6
_DECIMALS = 0.02  # pixels that six decimals of a fraction may be off
_MARGIN = 1 << 14  # pixels outside the image to which coordinates are clipped for OpenCV


class Region(Protocol):
    """A part of an image with one label."""

    @property
    def label(self) -> str:
        """The label of the defect type."""
        ...

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the region in a mask bool [H, W]; parts outside it are clipped.

        Raises:
            InputError: the region does not fit the image.
        """
        ...


@dataclass(frozen=True, eq=False)
class Polygon:
    """A polygon; pixels inside an even number of its loops are outside.

    Attributes:
        label: of the defect type.
        points: float64 [N, 2], finite, N >= 3.
        origin: convention of the coordinates.
    """

    label: str
    points: NDArray[np.float64]
    origin: Origin = PIXEL_CENTERS

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the polygon."""
        fill_polygon(mask, self.points, self.origin)


@dataclass(frozen=True, eq=False)
class RelativePolygon:
    """A polygon in fractions of the width and the height of the image.

    With pixel centres, a point is the pixel that it is in, as Ultralytics reads it.

    Attributes:
        label: of the defect type.
        points: float64 [N, 2], finite, N >= 3; 0 to 1 inside the image.
        origin: how the scaled coordinates are rasterised.
    """

    label: str
    points: NDArray[np.float64]
    origin: Origin = PIXEL_CENTERS

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the polygon."""
        points = self.points * [mask.shape[1], mask.shape[0]]
        if self.origin == PIXEL_CENTERS:
            points = np.floor(points + _DECIMALS)
        fill_polygon(mask, points, self.origin)


@dataclass(frozen=True)
class Rectangle:
    """A filled rectangle; with pixel centres it includes the pixels of both corners.

    Attributes:
        label: of the defect type.
        corners: left, top, right, bottom; finite.
        origin: convention of the coordinates.
    """

    label: str
    corners: tuple[float, float, float, float]
    origin: Origin = PIXEL_CENTERS

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the rectangle, at least one."""
        columns = _pixel_range(self.corners[0], self.corners[2], mask.shape[1], self.origin)
        rows = _pixel_range(self.corners[1], self.corners[3], mask.shape[0], self.origin)
        mask[rows, columns] = True


@dataclass(frozen=True)
class Ellipse:
    """A filled ellipse.

    Attributes:
        label: of the defect type.
        center: (x, y), finite.
        radii: (horizontal, vertical) before the rotation, finite and positive.
        rotation: in degrees, clockwise on the screen.
        origin: convention of the coordinates.
    """

    label: str
    center: tuple[float, float]
    radii: tuple[float, float]
    rotation: float = 0.0
    origin: Origin = PIXEL_CENTERS

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels whose centre is inside the ellipse or on it."""
        offset = 0.5 if self.origin == PIXEL_CORNERS else 0.0
        reach = max(self.radii)
        left, top = (max(0, int(min(max(c - reach - 1, 0), 1e9))) for c in self.center)
        right, bottom = (int(min(max(c + reach + 2, 0), 1e9)) for c in self.center)
        window = mask[top:bottom, left:right]
        y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        dx, dy = x + offset - self.center[0], y + offset - self.center[1]
        cosine, sine = np.cos(np.radians(self.rotation)), np.sin(np.radians(self.rotation))
        radii = [max(radius, _ROUNDING) for radius in self.radii]
        along, across = (dx * cosine + dy * sine) / radii[0], (dy * cosine - dx * sine) / radii[1]
        window |= along**2 + across**2 <= 1 + 1e-9


@dataclass(frozen=True)
class Bitmap:
    """A mask that is decoded when it is needed.

    Attributes:
        label: of the defect type.
        decode: returns the mask bool [h, w]; raises ValueError with what is wrong, such as `has no runs`.
        where: file and field, for the message.
        left: column of its first pixel in the image; may be negative.
        top: row of its first pixel in the image; may be negative.
        whole_image: whether it must have the size of the image.
    """

    label: str
    decode: Callable[[], NDArray[np.bool_]]
    where: str
    left: int = 0
    top: int = 0
    whole_image: bool = False

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the bitmap.

        Raises:
            InputError: the bitmap cannot be decoded, or must have the size of the image and has another.
        """
        try:
            bitmap = self.decode()
        except ValueError as error:
            raise InputError(f"{self.where}: the mask {error}; export the annotations again") from None
        if self.whole_image and bitmap.shape != mask.shape:
            raise InputError(size_message(self.where, bitmap.shape, mask.shape))
        top, left = max(self.top, 0), max(self.left, 0)
        part = bitmap[top - self.top :, left - self.left :]
        window = mask[top:, left:][: part.shape[0], : part.shape[1]]
        window |= part[: window.shape[0], : window.shape[1]]


@dataclass(frozen=True)
class MaskRegion:
    """All pixels of another mask source, under the label of the annotation.

    Attributes:
        label: of the defect type.
        source: the mask source.
    """

    label: str
    source: MaskSource

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of all labels of the source.

        Raises:
            InputError: as the source.
        """
        for part in self.source.masks(*mask.shape).values():
            mask |= part


@dataclass(frozen=True)
class Shapes:
    """The annotation of one image: regions with labels. An image may have several labels, and labels may overlap.

    Attributes:
        regions: the regions.
        files: the files that they were read from.
        size: (height, width) of the image as the annotation says it; None if it does not.
        label_images: images whose colours or values are labels.
    """

    regions: tuple[Region, ...]
    files: tuple[Path, ...]
    size: tuple[int, int] | None = None
    label_images: tuple[MaskSource, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read, for messages and for the inventory of the source."""
        others = [source.paths for source in self.label_images]
        others += [region.source.paths for region in self.regions if isinstance(region, MaskRegion)]
        return tuple(dict.fromkeys([*self.files, *(path for paths in others for path in paths)]))

    def masks(self, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [H, W] per label; labels without a pixel are left out.

        Args:
            height: of the upright image, in pixels.
            width: of the upright image, in pixels.

        Raises:
            InputError: the annotation is of an image of another size, or a mask cannot be decoded.
        """
        if self.size is not None and self.size != (height, width):
            raise InputError(size_message(str(self.files[0]), self.size, (height, width)))
        masks: dict[str, NDArray[np.bool_]] = {}
        for region in self.regions:
            if region.label not in masks:
                masks[region.label] = np.zeros((height, width), bool)
            region.add_to(masks[region.label])
        for source in self.label_images:
            for label, mask in source.masks(height, width).items():
                masks[label] = masks[label] | mask if label in masks else mask
        return {label: mask for label, mask in masks.items() if mask.any()}


def fill_polygon(mask: NDArray[np.bool_], points: NDArray[np.float64], origin: Origin = PIXEL_CENTERS) -> None:
    """Set the pixels of a polygon in a mask.

    Args:
        mask: bool [H, W], changed in place.
        points: float64 [N, 2], finite, N >= 1.
        origin: convention of the coordinates.

    >>> mask = np.zeros((4, 4), bool)
    >>> fill_polygon(mask, np.array([[1, 1], [3, 1], [3, 3], [1, 3]]), PIXEL_CORNERS)
    >>> int(mask.sum())
    4
    """
    if origin == PIXEL_CENTERS:
        _fill_outline(mask, points)
        return
    _fill_even_odd(mask, points - 0.5)
    x, y = points[:, 0], points[:, 1]
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    half = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum() / 2
    width = (half - np.sqrt(max(half**2 - 4 * area, 0.0))) / 2  # of the rectangle of this area and circumference
    if width < 1 - _ROUNDING:
        _fill_outline(mask, np.floor(points))


def rotated_box(
    corners: tuple[float, float, float, float], degrees: float, pivot: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the corners float64 [4, 2] of a box (left, top, right, bottom) turned clockwise around a point.

    >>> rotated_box((0, 0, 2, 1), 90, (0, 0)).round(6).tolist()[1]
    [0.0, 2.0]
    """
    left, top, right, bottom = corners
    points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64) - pivot
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]]) + pivot


def _fill_outline(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Set the pixels inside a polygon or on its outline, by OpenCV, in the window that the polygon covers."""
    low = np.clip(np.floor(points.min(axis=0)).astype(np.int64), 0, [mask.shape[1], mask.shape[0]])
    high = np.clip(np.ceil(points.max(axis=0)).astype(np.int64) + 1, 0, [mask.shape[1], mask.shape[0]])
    if (low >= high).any():
        return
    window = mask[low[1] : high[1], low[0] : high[0]]
    size = np.array([window.shape[1], window.shape[0]])
    moved = np.clip(points - low, -_MARGIN, size + _MARGIN)
    fixed = np.round(moved * (1 << _FRACTION_BITS)).astype(np.int32)
    canvas = np.zeros(window.shape, np.uint8)
    if (fixed % (1 << _FRACTION_BITS)).any():
        cv2.fillPoly(canvas, [fixed], color=1, shift=_FRACTION_BITS)
    else:
        cv2.fillPoly(canvas, [np.round(moved).astype(np.int32)], color=1)
    window |= canvas.astype(bool)


def _fill_even_odd(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Set the pixels whose centre is inside a polygon; integers are centres, and left and top edges belong to it."""
    height, width = mask.shape
    following = np.roll(points, -1, axis=0)
    upper = np.where((points[:, 1] <= following[:, 1])[:, None], points, following)
    lower = np.where((points[:, 1] <= following[:, 1])[:, None], following, points)
    first = np.clip(np.ceil(upper[:, 1]), 0, height).astype(np.int64)
    end = np.clip(np.ceil(lower[:, 1]), 0, height).astype(np.int64)
    counts = np.maximum(end - first, 0)
    if not counts.any():
        return
    top, bottom = int(first[counts > 0].min()), int(end.max())
    edges = np.repeat(np.arange(len(points)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    slopes = (lower[edges, 0] - upper[edges, 0]) / (lower[edges, 1] - upper[edges, 1])
    crossings = upper[edges, 0] + (rows - upper[edges, 1]) * slopes
    columns = np.clip(np.ceil(crossings), 0, width).astype(np.int64)
    left, right = int(columns.min()), int(columns.max())
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    np.add.at(toggles, (rows - top, columns - left), 1)  # an overflow keeps the parity
    inside = np.bitwise_xor.accumulate(toggles & 1, axis=1)[:, :-1]
    mask[top:bottom, left:right] |= inside.astype(bool)


def _pixel_range(low: float, high: float, size: int, origin: Origin) -> slice:
    """Return the pixels of an interval, at least one unless it is outside the image."""
    low, high = min(low, high), max(low, high)
    if origin == PIXEL_CENTERS:
        first, last = np.floor(low + 0.5), np.floor(high + 0.5)
    else:
        first, last = np.ceil(low - 0.5), np.ceil(high - 0.5) - 1
        if last < first:  # thinner than a pixel
            first = last = np.floor((low + high) / 2)
    first, end = np.clip([first, last + 1], 0, size).astype(int)
    return slice(int(first), int(end))


def size_message(where: str, found: tuple[int, ...], image: tuple[int, ...]) -> str:
    """Return the message that an annotation is of another size than its image, both (height, width)."""
    turned = " (the annotation is of the image before its EXIF rotation)" if found == image[::-1] else ""
    return (
        f"{where}: is of an image of {found[1]}x{found[0]} pixels, but the image has {image[1]}x{image[0]}{turned}; "
        "expected annotations of the image as it is shown upright"
    )
