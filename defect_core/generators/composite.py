"""Putting generated pixels onto a normal image so that everything outside the mask stays what it was."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.generators.base import Image, Mask

RING_WIDTH = 4
MAX_GAIN = 4.0  # beyond it a ring is too dark to tell the light by


def feather_mask(mask: Mask, width: float) -> NDArray[np.float32]:
    """Blend weights in [0, 1], float32 [H, W]: 0 outside the mask, rising to 1 over `width` pixels inside it.

    Every mask pixel keeps a weight above 0, so a thin scratch fades but never vanishes.
    """
    if width <= 0:
        return mask.astype(np.float32)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.where(mask, np.clip(depth / (width + 1.0), 0.0, 1.0), 0.0).astype(np.float32)


def is_gray(image: Image) -> bool:
    """Whether uint8 [H, W, 3] holds three equal channels, as a monochrome camera's images do."""
    return bool((image == image[..., :1]).all())


def make_gray(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    """The mean of the three channels in each of them; [..., 3] to the same shape."""
    return np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)


def composite(normal: Image, generated: Image | NDArray[np.floating], mask: Mask, feather: float) -> Image:
    """normal·(1 − w) + generated·w with w = `feather_mask(mask)`; equal to `normal` outside the mask, exactly.

    On a gray image the generated pixels are taken as gray, too: a tint would tell a segmenter what was drawn.

    Args:
        normal: uint8 [H, W, 3].
        generated: [H, W, 3] in 0 to 255.
        mask: bool [H, W].
        feather: width in pixels of the soft edge, inside the mask.
    """
    weight = feather_mask(mask, feather)[..., None]
    drawn = np.asarray(generated, np.float32)
    if is_gray(normal):
        drawn = make_gray(drawn)
    blended = normal.astype(np.float32) * (1 - weight) + drawn * weight
    return np.where(mask[..., None], np.clip(np.rint(blended), 0, 255).astype(np.uint8), normal)


def paste(normal: Image, source: Image, mask: Mask, feather: float, match_colour: float) -> Image:
    """Put a real defect's own pixels onto a normal image, in the light of the place they come to.

    The source is multiplied, channel by channel, for light and exposure are factors: a dent that is a third darker than
    its surroundings stays a third darker on an image taken at twice the exposure.

    Args:
        normal: uint8 [H, W, 3].
        source: uint8 [H, W, 3], the real defect image already moved to where the mask lies.
        mask: bool [H, W].
        feather: as in `composite`.
        match_colour: power, 0 to 1, of the factor by which the mean colours of the rings around the mask differ; the
            factor itself is kept between 1 / `MAX_GAIN` and `MAX_GAIN`.
    """
    ring = ndimage.binary_dilation(mask, iterations=RING_WIDTH) & ~mask
    moved = source.astype(np.float32)
    if ring.any():
        gain = (normal[ring].mean(0) + 1) / (moved[ring].mean(0) + 1)
        moved = moved * gain.clip(1 / MAX_GAIN, MAX_GAIN) ** match_colour
    return composite(normal, np.clip(moved, 0, 255), mask, feather)
