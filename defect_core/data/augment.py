"""Joint augmentation of an image and its mask that keeps the defect in view."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ATTEMPTS = 5  # random geometric changes, until enough of the defect stays in view


@dataclass(frozen=True)
class AugmentOptions:
    """Ranges of `augment_pair`. Each value v stands for a uniform choice from -v to v.

    Attributes:
        flips: whether to flip at random, horizontally and vertically.
        rotate90: whether to rotate by a random multiple of 90 degrees.
        rotation: in degrees.
        scale: relative change of the size.
        shift: as a fraction of the side.
        brightness: as a fraction of full scale.
        contrast: relative change.
        colour: relative change of each channel.
        keep: smallest fraction of the defect area that stays in view, 0 to 1.
        crop: whether to crop at random around the defect, see `random_crop_with_defect`.
        probability: of any change.
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
    crop: bool = False
    probability: float = 1.0


def augment_pair(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    options: AugmentOptions | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the image and the mask after the same random flip, rotation, scaling and shift.

    Brightness, contrast and colour change in the image only. The size stays, so only square images are rotated by 90
    or 270 degrees. The image is interpolated bilinearly, the mask by nearest neighbour. The image is mirrored at its
    border. If several attempts leave less than `options.keep` of the defect in view, the geometry stays unchanged.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W].
        rng: source of all randomness.
        options: ranges; None for the defaults.
    """
    options = options or AugmentOptions()
    if options.probability < 1 and rng.random() >= options.probability:
        return image.copy(), mask.copy()
    area = int(mask.sum())
    for _ in range(_ATTEMPTS):
        moved, moved_mask, zoom = _move(image, mask, rng, options)
        if area == 0 or moved_mask.sum() >= max(1, options.keep * area * zoom * zoom):
            break
    else:
        moved, moved_mask = image.copy(), mask.copy()
    if options.crop:
        moved, moved_mask = random_crop_with_defect(moved, moved_mask, rng)
    return _change_light(moved, rng, options), moved_mask


def random_crop_with_defect(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a random crop that contains the whole defect, enlarged to the size of the image.

    The aspect ratio may change (AnomalyDiffusion, appendix B and public code). Without a defect nothing changes.

    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W].
        rng: source of all randomness.
    """
    if not mask.any():
        return image, mask
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rng.integers(rows[0] + 1)), int(rng.integers(columns[0] + 1))
    bottom, right = int(rng.integers(rows[-1] + 1, height + 1)), int(rng.integers(columns[-1] + 1, width + 1))
    box, size = (left, top, right, bottom), (width, height)
    cropped = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box)
    cropped_mask = Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST, box)
    return np.array(cropped), np.array(cropped_mask) > 0


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
    """Rotate by `angle` (radians) and scale by `zoom` about the centre, then shift by (columns, rows)."""
    height, width = mask.shape
    centre = np.array([width, height]) / 2
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) - centre - shift
    overhang = np.abs(corners @ inverse.T).max(axis=0) - centre
    pad = int(np.clip(np.ceil(overhang.max()) + 2, 0, min(height, width)))
    offset = centre + pad - inverse @ (centre + shift)
    data = (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1])
    wide = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric"))
    wide_mask = Image.fromarray(np.pad(mask, pad, mode="symmetric").astype(np.uint8))
    affine = Image.Transform.AFFINE
    moved = wide.transform((width, height), affine, data, Image.Resampling.BILINEAR)
    moved_mask = wide_mask.transform((width, height), affine, data, Image.Resampling.NEAREST)
    return np.array(moved), np.array(moved_mask) > 0


def _change_light(image: NDArray[np.uint8], rng: np.random.Generator, options: AugmentOptions) -> NDArray[np.uint8]:
    contrast = 1 + rng.uniform(-options.contrast, options.contrast)
    offset = rng.uniform(-options.brightness, options.brightness) * 255
    gains = contrast * (1 + rng.uniform(-options.colour, options.colour, 3))
    middle = image.mean()
    table = (np.arange(256)[:, None] - middle) * gains + middle + offset
    table = np.clip(np.round(table), 0, 255).astype(np.uint8)
    return np.stack([table[image[..., channel], channel] for channel in range(3)], axis=2)
