"""Combine generated pixels with a normal image without a change outside the mask."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.generators.base import Image, Mask

# Width in pixels of the ring around a mask in which `paste` compares colours (not from a paper).
RING_WIDTH = 4
# A larger factor would come from a ring that is too dark to estimate the illumination.
MAX_GAIN = 4.0


def feather_mask(mask: Mask, width: float) -> NDArray[np.float32]:
    """Return blend weights in [0, 1], float32 [H, W]: 0 outside the mask, rising to 1 over `width` pixels inside it.

    Every mask pixel has a weight above 0, so a thin scratch stays visible.
    """
    if width <= 0:
        return mask.astype(np.float32)
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    return np.where(mask, np.clip(depth / (width + 1.0), 0.0, 1.0), 0.0).astype(np.float32)


def is_gray(image: Image) -> bool:
    """Return whether the three channels of an image are equal, as in images of a monochrome camera."""
    return bool((image == image[..., :1]).all())


def make_gray(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return [..., 3] with the mean of the three channels in each channel."""
    return np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)


def composite(normal: Image, generated: Image | NDArray[np.floating], mask: Mask, feather: float) -> Image:
    """Return normal·(1 − w) + generated·w with w = `feather_mask(mask, feather)`, uint8 [H, W, 3].

    The result equals `normal` exactly outside the mask. If the normal image is gray, the generated pixels become gray
    too, because a segmenter would recognise generated pixels by a tint.

    Args:
        normal: uint8 [H, W, 3].
        generated: [H, W, 3] in 0 to 255.
        mask: bool [H, W].
        feather: width in pixels of the soft edge inside the mask.
    """
    weight = feather_mask(mask, feather)[..., None]
    pixels: NDArray[np.floating] = np.asarray(generated, np.float32)
    if is_gray(normal):
        pixels = make_gray(pixels)
    blended = normal.astype(np.float32) * (1 - weight) + pixels * weight
    return np.where(mask[..., None], np.clip(np.rint(blended), 0, 255).astype(np.uint8), normal)


def paste(normal: Image, source: Image, mask: Mask, feather: float, match_colour: float) -> Image:
    """Return a normal image with the pixels of a real defect inside the mask, uint8 [H, W, 3].

    Each channel of the source is multiplied by a factor, because illumination and exposure are factors. A dent that is
    a third darker than its surroundings stays a third darker on an image with twice the exposure.

    Args:
        normal: uint8 [H, W, 3].
        source: uint8 [H, W, 3], the real defect image after the placement of its mask.
        mask: bool [H, W].
        feather: as in `composite`.
        match_colour: exponent of the factor, 0 to 1; 0 keeps the source's colours. The factor is the quotient of the
            mean colours in the rings around the mask, clipped to 1 / `MAX_GAIN` to `MAX_GAIN`.
    """
    ring = np.asarray(ndimage.binary_dilation(mask, iterations=RING_WIDTH), bool) & ~mask
    pixels = source.astype(np.float32)
    if ring.any():
        gain = (normal[ring].mean(0) + 1) / (pixels[ring].mean(0) + 1)
        pixels = pixels * gain.clip(1 / MAX_GAIN, MAX_GAIN) ** match_colour
    return composite(normal, np.clip(pixels, 0, 255), mask, feather)
