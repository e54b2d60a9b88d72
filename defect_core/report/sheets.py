"""Contact sheets: many small images in one picture, each with the outline of its mask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUTLINE = (255, 0, 170)  # magenta: almost no inspected surface has this colour
BACKGROUND = 255
GAP = 2  # pixels between images
_SMALLEST_CELL = 8


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_] | None],
    columns: int = 8,
    cell: int = 96,
) -> NDArray[np.uint8]:
    """Return images in rows of `columns`, each resized into a square of `cell` pixels with its aspect ratio kept.

    The outline surrounds the mask from outside, so the defect stays visible. A mask smaller than one pixel of the
    sheet still shows.

    Args:
        images: uint8 [H, W, 3], 0 to 255; sizes may differ.
        masks: bool [H, W] in the size of each image, or None for an image without a defect.
        columns: at least 1; a sheet with fewer images is narrower.
        cell: side of a square in pixels, at least 8.

    Returns:
        uint8 [H, W, 3]; one white cell when there is no image.

    Raises:
        ValueError: the number of masks differs from the number of images, or a mask and its image differ in size.
    """
    if len(images) != len(masks):
        raise ValueError(f"expected one mask per image, got {len(masks)} for {len(images)}")
    if columns < 1 or cell < _SMALLEST_CELL:
        raise ValueError(f"expected columns >= 1 and cell >= {_SMALLEST_CELL}, got {columns} and {cell}")
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    pitch = cell + GAP
    sheet = np.full((rows * pitch - GAP, columns * pitch - GAP, 3), BACKGROUND, np.uint8)
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        thumbnail = _thumbnail(image, mask, cell)
        height, width = thumbnail.shape[:2]
        top = index // columns * pitch + (cell - height) // 2
        left = index % columns * pitch + (cell - width) // 2
        sheet[top : top + height, left : left + width] = thumbnail
    return sheet


def read_score_map(path: Path) -> NDArray[np.uint8]:
    """Return a stored score map as uint8 [H, W, 3] in the colours black, red, yellow, white (lowest to highest)."""
    with Image.open(path) as image:
        value = np.asarray(image, np.float32) / 255
    return np.rint(255 * np.clip(np.stack([3 * value, 3 * value - 1, 3 * value - 2], -1), 0, 1)).astype(np.uint8)


def _thumbnail(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, cell: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    thumbnail = np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BOX))
    if mask is None:
        return thumbnail
    if mask.shape != (height, width):
        raise ValueError(f"expected a mask of {(height, width)} for its image, got {mask.shape}")
    thumbnail[_outline(_shrink(mask, size))] = OUTLINE
    return thumbnail


def _shrink(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask to (width, height); a pixel is set where the mask has any pixel inside it."""
    height, width = mask.shape
    small = np.zeros((size[1], size[0]), bool)
    ys, xs = np.nonzero(mask)
    small[np.minimum(ys * size[1] // height, size[1] - 1), np.minimum(xs * size[0] // width, size[0] - 1)] = True
    if size[0] > width or size[1] > height:
        enlarged = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        small = np.asarray(enlarged, dtype=bool)
    return small


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels next to the mask, or the border of the image where the mask fills it."""
    padded = np.pad(mask, 1)
    dilated = padded.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            dilated |= np.roll(padded, step, axis)
    outline = dilated[1:-1, 1:-1] & ~mask
    if outline.any() or not mask.any():
        return outline
    outline = np.ones_like(mask)
    outline[1:-1, 1:-1] = False
    return outline
