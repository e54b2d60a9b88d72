"""The canvas: the square in the backbone's resolution that a method draws on.

`whole` is the entire image, `local` a window around the mask with context on every side. Either way the drawn
pixels go back into the image at the image's own resolution, so a 4000 px image keeps what lies outside the window.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from defect_core.generators.base import Image, Mask

CanvasKind = Literal["whole", "local"]


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels, that the canvas shows."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def choose_window(
    mask: Mask, kind: CanvasKind, context: float, min_side: int, rng: np.random.Generator | None = None
) -> Window:
    """Where the canvas lies on an image of the mask's size.

    Args:
        mask: bool [H, W], not empty.
        kind: `whole` or `local`.
        context: side of a local window over the longer side of the mask's bounding box, at least 1.
        min_side: least side of a local window in pixels.
        rng: shifts a local window at random, the mask staying inside; None centres it.
    """
    height, width = mask.shape
    if kind == "whole":
        return Window(0, 0, height, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(min_side, round(context * max(np.ptp(rows) + 1, np.ptp(columns) + 1)))
    top, tall = _place(rows[0], rows[-1] + 1, side, height, rng)
    left, wide = _place(columns[0], columns[-1] + 1, side, width, rng)
    return Window(top, left, tall, wide)


def crop_image(image: Image, window: Window, resolution: int) -> Image:
    """The window of an image at the canvas' resolution: uint8 [R, R, 3]."""
    part = PILImage.fromarray(np.ascontiguousarray(image[window.slices]))
    return np.asarray(part.resize((resolution, resolution), PILImage.Resampling.BICUBIC))


def crop_mask(mask: Mask, window: Window, resolution: int) -> Mask:
    """The window of a mask at the canvas' resolution; any coverage counts, so a thin defect is never lost."""
    part = PILImage.fromarray(mask[window.slices].astype(np.float32))
    shrinks = max(window.height, window.width) > resolution
    method = PILImage.Resampling.BOX if shrinks else PILImage.Resampling.BILINEAR
    level = 0.25 if shrinks else 0.5
    shown = np.asarray(part.resize((resolution, resolution), method)) >= level
    if not shown.any() and part.getbbox() is not None:
        shown = np.asarray(part.resize((resolution, resolution), PILImage.Resampling.BOX)) > 0
    return shown


def resize_to_window(canvas: NDArray[np.floating], window: Window) -> NDArray[np.float32]:
    """A drawn canvas, [R, R] or [R, R, C], at the window's own size."""
    planes = canvas[..., None] if canvas.ndim == 2 else canvas
    size = (window.width, window.height)
    resized = [
        np.asarray(
            PILImage.fromarray(np.ascontiguousarray(plane, np.float32)).resize(size, PILImage.Resampling.BICUBIC)
        )
        for plane in np.moveaxis(planes, -1, 0)
    ]
    out = np.stack(resized, -1)
    return out[..., 0] if canvas.ndim == 2 else out


def dilate_in_window(mask: Mask, window: Window, reach: float, resolution: int) -> Mask:
    """What lies in the window's part of a mask, or at most `reach` pixels of the canvas from it: bool [h, w].

    Args:
        mask: bool [H, W] of the whole image.
        reach: in pixels of a canvas of side `resolution`.
    """
    part = mask[window.slices]
    if not part.any():
        return part.copy()
    return ndimage.distance_transform_edt(~part) <= reach * max(part.shape) / resolution


def _place(low: int, high: int, side: int, limit: int, rng: np.random.Generator | None) -> tuple[int, int]:
    side = min(max(side, high - low), limit)
    first, last = max(0, high - side), min(low, limit - side)
    if rng is not None:
        return int(rng.integers(first, last + 1)), side
    return int(np.clip((low + high - side) // 2, first, last)), side
