"""The canvas: the square at the backbone's resolution in which a method generates a defect.

A `whole` canvas shows the entire image, a `local` canvas a window around the mask with context on every side. The
generated pixels are resized to the window before they enter the image. Therefore a 4000 px image keeps its resolution.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from defect_core.generators.base import Image, Mask

CanvasKind = Literal["whole", "local"]
# A pixel of a reduced mask belongs to the defect if the defect covers at least this fraction of it. An enlarged mask is
# interpolated, so its edge is at one half.
_MIN_COVERAGE, _ENLARGED_EDGE = 0.25, 0.5


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels, that a canvas shows.

    Attributes:
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the window, as an index into an image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def choose_window(
    mask: Mask, kind: CanvasKind, context: float, min_side: int, rng: np.random.Generator | None = None
) -> Window:
    """Return the window of an image that a canvas shows.

    Args:
        mask: bool [H, W], not empty.
        kind: `whole` or `local`.
        context: side of a local window relative to the longer side of the mask's bounding box, at least 1.
        min_side: smallest side of a local window in pixels.
        rng: shifts a local window at random so that the mask stays inside; None centres the window on the mask.

    Returns:
        A window inside the image that contains the mask.
    """
    height, width = mask.shape
    if kind == "whole":
        return Window(0, 0, height, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(min_side, round(context * max(np.ptp(rows) + 1, np.ptp(columns) + 1)))
    top, window_height = _place_interval(rows[0], rows[-1] + 1, side, height, rng)
    left, window_width = _place_interval(columns[0], columns[-1] + 1, side, width, rng)
    return Window(top, left, window_height, window_width)


def crop_image(image: Image, window: Window, resolution: int) -> Image:
    """Return the window of an image at the resolution R of the canvas: uint8 [R, R, 3]."""
    part = PILImage.fromarray(np.ascontiguousarray(image[window.slices]))
    return np.asarray(part.resize((resolution, resolution), PILImage.Resampling.BICUBIC))


def crop_mask(mask: Mask, window: Window, resolution: int) -> Mask:
    """Return the window of a mask at the resolution R of the canvas: bool [R, R].

    A mask with a defect pixel in the window stays nonempty, so a thin defect is never lost.
    """
    part = PILImage.fromarray(mask[window.slices].astype(np.float32))
    is_reduced = max(window.height, window.width) > resolution
    method = PILImage.Resampling.BOX if is_reduced else PILImage.Resampling.BILINEAR
    threshold = _MIN_COVERAGE if is_reduced else _ENLARGED_EDGE
    cropped = np.asarray(part.resize((resolution, resolution), method)) >= threshold
    if not cropped.any() and part.getbbox() is not None:
        cropped = np.asarray(part.resize((resolution, resolution), PILImage.Resampling.BOX)) > 0
    return cropped


def resize_to_window(canvas: NDArray[np.floating], window: Window) -> NDArray[np.float32]:
    """Return a canvas, [R, R] or [R, R, C], at the size of its window: float32 [h, w] or [h, w, C]."""
    planes = canvas[..., None] if canvas.ndim == 2 else canvas
    size = (window.width, window.height)
    resized = [
        np.asarray(
            PILImage.fromarray(np.ascontiguousarray(plane, np.float32)).resize(size, PILImage.Resampling.BICUBIC)
        )
        for plane in np.moveaxis(planes, -1, 0)
    ]
    stacked = np.stack(resized, -1)
    return stacked[..., 0] if canvas.ndim == 2 else stacked


def dilate_in_window(mask: Mask, window: Window, radius: float, resolution: int) -> Mask:
    """Return the window of a mask, dilated by a radius: bool [h, w].

    Args:
        mask: bool [H, W], of the whole image.
        window: the part of the image to return.
        radius: dilation radius in pixels of the canvas.
        resolution: side of the canvas in pixels.
    """
    part = mask[window.slices]
    if not part.any():
        return part.copy()
    return np.asarray(ndimage.distance_transform_edt(~part) <= radius * max(part.shape) / resolution)


def _place_interval(low: int, high: int, side: int, limit: int, rng: np.random.Generator | None) -> tuple[int, int]:
    """Return start and length of an interval in [0, limit) that contains [low, high)."""
    side = min(max(side, high - low), limit)
    first, last = max(0, high - side), min(low, limit - side)
    if rng is not None:
        return int(rng.integers(first, last + 1)), side
    return int(np.clip((low + high - side) // 2, first, last)), side
