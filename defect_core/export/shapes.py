"""Masks in the notation of other formats: polygons and run-length encoding."""

import cv2
import numpy as np
from numpy.typing import NDArray

from defect_core.data.masks import Component, components

_MIN_POINTS = 3  # A YOLO label with fewer points is read as a bounding box.


def mask_to_polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """Return the outer contour of each 8-connected component, largest component first.

    `cv2.fillPoly` of a contour gives the component with its holes filled. A component of one or two pixels repeats
    its last point.

    Args:
        mask: bool [H, W].

    Returns:
        One int32 [N, 2] per component, N >= 3: indices (x, y) of pixels at its border.

    >>> mask_to_polygons(np.ones((2, 3), bool))[0].tolist()
    [[0, 0], [0, 1], [2, 1], [2, 0]]
    """
    polygons = []
    for component in components(mask):
        crop = component.mask.astype(np.uint8)
        contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        points = np.asarray(contours[0], dtype=np.int32).reshape(-1, 2) + np.array(
            [component.left, component.top], np.int32
        )
        polygons.append(np.pad(points, ((0, max(0, _MIN_POINTS - len(points))), (0, 0)), mode="edge"))
    return polygons


def component_to_rle(component: Component, height: int, width: int) -> list[int]:
    """Return COCO's uncompressed run-length encoding of a mask [height, width] that has this component only.

    The runs go down the columns, False pixels first. The time is proportional to the box of the component.
    """
    columns, rows = np.nonzero(component.mask.T)
    pixels = (columns + component.left) * height + rows + component.top
    breaks = np.flatnonzero(np.diff(pixels) > 1)
    starts, ends = pixels[np.concatenate(([0], breaks + 1))], pixels[np.append(breaks, len(pixels) - 1)] + 1
    lengths = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0).tolist()
    rest = height * width - int(ends[-1])
    return [*lengths, rest] if rest else lengths
