"""Contact sheets: many small images on one, each with its mask outlined."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUTLINE = (255, 0, 170)  # magenta: hardly any inspected surface has it
BACKGROUND = 255
GAP = 2


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_] | None],
    columns: int = 8,
    cell: int = 96,
) -> NDArray[np.uint8]:
    """Lay images out in rows of `columns`, each shrunk or grown into a square of `cell` pixels, shape kept.

    The outline runs just outside the mask, so that the defect itself stays in sight; a mask smaller than a pixel
    of the sheet still shows.

    Args:
        images: uint8 [H, W, 3], 0 to 255; sizes may differ.
        masks: bool [H, W] of its image's size, or None for an image without a defect; as many as images.
        columns: at least 1; a sheet with fewer images is only as wide as they need.
        cell: side of a square in pixels, at least 8.

    Returns:
        uint8 [H, W, 3]; one white cell when there is no image.

    Raises:
        ValueError: another number of masks than images, or a mask of another size than its image.
    """
    if len(images) != len(masks):
        raise ValueError(f"expected one mask per image, got {len(masks)} for {len(images)}")
    if columns < 1 or cell < 8:
        raise ValueError(f"expected columns >= 1 and cell >= 8, got {columns} and {cell}")
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    pitch = cell + GAP
    sheet = np.full((rows * pitch - GAP, columns * pitch - GAP, 3), BACKGROUND, np.uint8)
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        drawn = _draw(image, mask, cell)
        height, width = drawn.shape[:2]
        top = index // columns * pitch + (cell - height) // 2
        left = index % columns * pitch + (cell - width) // 2
        sheet[top : top + height, left : left + width] = drawn
    return sheet


def _draw(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, cell: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BOX))
    if mask is None:
        return drawn
    if mask.shape != (height, width):
        raise ValueError(f"expected a mask of {(height, width)} for its image, got {mask.shape}")
    drawn[_outline(_shrink(mask, size))] = OUTLINE
    return drawn


def _shrink(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A pixel of the small mask is set where the large one has any pixel inside it."""
    height, width = mask.shape
    small = np.zeros((size[1], size[0]), bool)
    ys, xs = np.nonzero(mask)
    small[np.minimum(ys * size[1] // height, size[1] - 1), np.minimum(xs * size[0] // width, size[0] - 1)] = True
    if size[0] > width or size[1] > height:
        enlarged = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        small = np.asarray(enlarged, dtype=bool)
    return small


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels next to the mask; the border of the mask itself where the mask fills the whole image."""
    padded = np.pad(mask, 1)
    grown = padded.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(padded, step, axis)
    ring = grown[1:-1, 1:-1] & ~mask
    if ring.any() or not mask.any():
        return ring
    ring = np.ones_like(mask)
    ring[1:-1, 1:-1] = False
    return ring
