"""Joint changes of an image and its mask that never lose the defect."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TRIES = 5


@dataclass(frozen=True)
class AugmentOptions:
    """How far `augment` goes.

    `rotation` in degrees, `scale` and `shift` as fractions (of size 1 and of the side), each drawn uniformly from
    plus to minus; `brightness`, `contrast` and `colour` (per channel) as fractions of full scale; `keep` is the least
    fraction of the defect's area that has to stay in view.
    """

    flips: bool = True
    rotate90: bool = True
    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.15
    colour: float = 0.03
    keep: float = 0.5


def augment(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    options: AugmentOptions | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Flip, turn, scale, shift image uint8 [H, W, 3] and mask bool [H, W] alike; change the light of the image only.

    Quarter turns by 90 and 270 degrees are for square images only, so the size stays. The image is interpolated
    bilinearly, the mask by nearest neighbour; what comes in over the border is the mirrored image. A mask with defect
    pixels keeps at least `keep` of its area (several draws, then no geometric change at all).
    """
    options = options or AugmentOptions()
    area = int(mask.sum())
    for _ in range(_TRIES):
        moved, moved_mask, zoom = _move(image, mask, rng, options)
        if area == 0 or moved_mask.sum() >= max(1, options.keep * area * zoom * zoom):
            break
    else:
        moved, moved_mask = image.copy(), mask.copy()
    return _relight(moved, rng, options), moved_mask


def random_crop_with_defect(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], size: tuple[int, int] | int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Cut a random window of `size` (height, width; an int is both) that holds a defect pixel, if any is there.

    An image smaller than the window is mirrored at its lower and right border first.
    """
    height, width = (size, size) if isinstance(size, int) else size
    pad = (max(0, height - mask.shape[0]), max(0, width - mask.shape[1]))
    if any(pad):
        image = np.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="symmetric")
        mask = np.pad(mask, ((0, pad[0]), (0, pad[1])), mode="symmetric")
    corner = []
    defect = np.argwhere(mask)
    pixel = defect[rng.integers(len(defect))] if len(defect) else None
    for axis, extent in enumerate((height, width)):
        low, high = 0, mask.shape[axis] - extent
        if pixel is not None:
            low, high = max(low, int(pixel[axis]) - extent + 1), min(high, int(pixel[axis]))
        corner.append(int(rng.integers(low, high + 1)))
    window = (slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width))
    return image[window].copy(), mask[window].copy()


def _move(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], rng: np.random.Generator, options: AugmentOptions
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    if options.flips:
        for axis in (0, 1):
            if rng.random() < 0.5:
                image, mask = np.flip(image, axis), np.flip(mask, axis)
    if options.rotate90:
        square = mask.shape[0] == mask.shape[1]
        turns = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    angle = np.deg2rad(rng.uniform(-options.rotation, options.rotation))
    zoom = float(1 + rng.uniform(-options.scale, options.scale))
    shift = rng.uniform(-options.shift, options.shift, 2) * np.array(mask.shape[::-1])
    if angle == 0 and zoom == 1 and not shift.any():
        return image.copy(), mask.copy(), 1.0
    return *_warp(image, mask, angle, zoom, shift), zoom


def _warp(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], angle: float, zoom: float, shift: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Turn by `angle` and scale by `zoom` about the centre, then shift by (columns, rows)."""
    height, width = mask.shape
    centre = np.array([width, height]) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) - centre - shift
    reach = np.abs(corners @ turn.T).max(axis=0) - centre
    pad = int(np.clip(np.ceil(reach.max()) + 2, 0, min(height, width)))
    offset = centre + pad - turn @ (centre + shift)
    data = (turn[0, 0], turn[0, 1], offset[0], turn[1, 0], turn[1, 1], offset[1])
    wide = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric"))
    wide_mask = Image.fromarray(np.pad(mask, pad, mode="symmetric").astype(np.uint8))
    affine = Image.Transform.AFFINE
    moved = wide.transform((width, height), affine, data, Image.Resampling.BILINEAR)
    moved_mask = wide_mask.transform((width, height), affine, data, Image.Resampling.NEAREST)
    return np.array(moved), np.array(moved_mask) > 0


def _relight(image: NDArray[np.uint8], rng: np.random.Generator, options: AugmentOptions) -> NDArray[np.uint8]:
    contrast = 1 + rng.uniform(-options.contrast, options.contrast)
    offset = rng.uniform(-options.brightness, options.brightness) * 255
    gains = contrast * (1 + rng.uniform(-options.colour, options.colour, 3))
    middle = image.mean()
    table = (np.arange(256)[:, None] - middle) * gains + middle + offset
    table = np.clip(np.round(table), 0, 255).astype(np.uint8)
    return np.stack([table[image[..., channel], channel] for channel in range(3)], axis=2)
