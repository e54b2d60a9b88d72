"""Resizing of images and masks to the size at which scores are computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import downsample_mask


def resize_images(arrays: Sequence[NDArray[Any]], size: int) -> NDArray[Any]:
    """Returns images or masks of any sizes at `size` x `size`. The aspect ratio is not kept.

    Args:
        arrays: uint8 `[H,W,3]` images (bicubic, antialiased), or bool `[H,W]` masks (a pixel is defective if more than
            half of it is covered, and no component vanishes).
        size: side in pixels.

    Returns:
        uint8 `[N,S,S,3]` or bool `[N,S,S]`. An empty list gives zero images.
    """
    resized = []
    for array in arrays:
        if array.shape[:2] == (size, size):
            resized.append(array)
        elif array.dtype == bool:
            resized.append(downsample_mask(array, size, "area"))
        else:
            resized.append(np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(resized) if resized else np.zeros((0, size, size, 3), np.uint8)
