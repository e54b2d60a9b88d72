"""Operations on binary masks: resampling that keeps every defect, connected components, bounding boxes.

No function needs time or memory proportional to the number of components times the size of the mask.
"""

from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

POLICIES = ("max", "area", "nearest", "bilinear")
_STRIP = 256  # rows that are processed at once; bounds the memory


class Component(NamedTuple):
    """One connected component of a mask, as a crop.

    Attributes:
        top: first row of the component in the mask.
        left: first column.
        mask: bool [h, w], the pixels of the component in its bounding box.
    """

    top: int
    left: int
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom and right in the mask; bottom and right are exclusive."""
        return self.top, self.left, self.top + self.mask.shape[0], self.left + self.mask.shape[1]

    def add_to(self, target: NDArray[np.bool_]) -> None:
        """Set the pixels of the component in `target`, bool [H, W] of the size of the mask."""
        top, left, bottom, right = self.box
        target[top:bottom, left:right] |= self.mask


def downsample_mask(mask: NDArray[np.bool_], size: tuple[int, int] | int, policy: str = "max") -> NDArray[np.bool_]:
    """Return a mask bool [H, W] resampled to `size`, which may also be larger.

    Args:
        mask: bool [H, W].
        size: (height, width); an int stands for both.
        policy: how a cell of the result is decided.
            `max`: True if the defect covers any part of the cell, so no component vanishes.
            `area`: True if the defect covers more than half of the cell. An 8-connected component that would vanish
            is resampled by `max`.
            `nearest`: the pixel under the centre of the cell; may lose small defects.
            `bilinear`: antialiased triangle filter, at least one half; may lose small defects.

    Raises:
        ValueError: unknown policy, or a size below 1.
    """
    mask = np.asarray(mask, dtype=bool)
    height, width = (size, size) if isinstance(size, int) else size
    if policy not in POLICIES:
        raise ValueError(f"unknown mask policy {policy!r}; expected one of {', '.join(POLICIES)}")
    if height < 1 or width < 1:
        raise ValueError(f"size {(height, width)}; expected at least one pixel in height and width")
    if mask.shape == (height, width):
        return mask.copy()
    if policy == "nearest":
        rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
        return mask[np.ix_(rows, columns)]
    if policy == "bilinear":
        levels = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(levels) >= 0.5
    coverage = _cell_coverage(mask, height, width)
    touched = coverage > 0
    if policy == "max":
        return touched
    result = 2 * coverage > mask.size
    if (touched & ~result).any():
        _add_vanished_components(mask, result)
    return result


def components(mask: NDArray[np.bool_], min_area: int = 1) -> list[Component]:
    """Return the 8-connected components of a mask as crops, largest first (ties in reading order).

    Args:
        mask: bool [H, W].
        min_area: smaller components, in pixels, are left out.
    """
    labels, count = label_components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = sorted(np.flatnonzero(areas >= min_area).tolist(), key=lambda index: (-areas[index], index))
    boxes = ndimage.find_objects(labels)
    return [
        Component(boxes[index][0].start, boxes[index][1].start, labels[boxes[index]] == index + 1) for index in order
    ]


def component_widths(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the width of each 8-connected component, in the order of `components`: int64 [N].

    The width is the side in pixels of the largest axis-aligned square that fits into the component. A scratch of
    200 x 2 pixels has width 2.

    >>> component_widths(np.pad(np.ones((3, 9), bool), 2)).tolist()
    [3]
    """
    return np.array([_largest_square(component.mask) for component in components(mask)], dtype=np.int64)


def label_components(mask: NDArray[np.bool_], connectivity: int = 8) -> tuple[NDArray[np.int32], int]:
    """Return the labels int32 [H, W] of the connected components, 0 for the background, and their number.

    Args:
        mask: bool [H, W].
        connectivity: 4 (pixels that share an edge) or 8 (pixels that share an edge or a corner).
    """
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    return cast(tuple[NDArray[np.int32], int], ndimage.label(mask, structure))


def fill_small_holes(mask: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] with its 4-connected holes of less than `area` pixels set."""
    labels, count = label_components(~mask, connectivity=4)
    small = np.bincount(labels.ravel(), minlength=count + 1) < area
    small[0] = False
    return mask | small[labels]


def touches_border(mask: NDArray[np.bool_]) -> bool:
    """Return whether a pixel of the mask bool [H, W] is at the border of the image."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the True pixels; bottom and right are exclusive.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("the mask is empty; expected at least one set pixel")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _cell_coverage(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.int64]:
    """Return the covered area of each cell, int64 [height, width], exact; a covered cell has `mask.size`.

    The unit is the area of a pixel divided by `height * width`, in which pixels and cells have integer sides.
    """
    rows, columns = mask.shape
    coverage = np.zeros((height, width), np.int64)
    whole, rest = np.divmod(np.arange(width + 1, dtype=np.int64) * columns, width)
    inside = np.minimum(whole, columns - 1)
    filled = np.concatenate([[0], np.cumsum(mask.any(axis=1))])
    cumulative = np.zeros(columns + 1, np.int64)
    for cell in range(height):
        start, end = cell * rows, (cell + 1) * rows
        first, last = start // height, (end - 1) // height + 1
        if filled[first] == filled[last]:
            continue
        edges = np.arange(first, last + 1) * height
        weight = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        covered = (weight.astype(np.float64) @ mask[first:last].astype(np.float64)).astype(np.int64)
        np.cumsum(covered, out=cumulative[1:])
        coverage[cell] = np.diff(cumulative[whole] * width + rest * covered[inside])
    return coverage


def _touched_cells(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last of `new` cells that each of `old` pixels touches, int64 [old]."""
    edges = np.arange(old + 1, dtype=np.int64) * new
    return edges[:-1] // old, (edges[1:] - 1) // old


def _add_vanished_components(mask: NDArray[np.bool_], result: NDArray[np.bool_]) -> None:
    """Set all touched cells of each component of `mask` of which `result` has no cell yet, largest component first."""
    labels, count = label_components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    first_row, last_row = _touched_cells(mask.shape[0], result.shape[0])
    first_column, last_column = _touched_cells(mask.shape[1], result.shape[1])
    above = np.pad(np.cumsum(result, axis=0, dtype=np.int32), ((1, 0), (0, 0)))
    vanished = np.ones(count + 1, bool)
    vanished[0] = False
    for top in range(0, mask.shape[0], _STRIP):
        strip = slice(top, top + _STRIP)
        in_rows = above[last_row[strip] + 1] > above[first_row[strip]]
        before = np.pad(np.cumsum(in_rows, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
        is_kept = before[:, last_column + 1] > before[:, first_column]
        vanished[labels[strip][is_kept]] = False
    cells = result.size
    keys = np.empty(0, np.int64)  # label * cells + cell, unique
    for top in range(0, mask.shape[0], _STRIP) if vanished.any() else ():
        rows, columns = np.nonzero(vanished[labels[top : top + _STRIP]])
        label = labels[top + rows, columns].astype(np.int64) * cells
        rows, new = rows + top, [keys]
        for down in range(int((last_row - first_row).max()) + 1):
            row = np.minimum(first_row[rows] + down, last_row[rows]) * result.shape[1]
            for right in range(int((last_column - first_column).max()) + 1):
                new.append(label + row + np.minimum(first_column[columns] + right, last_column[columns]))
        keys = np.unique(np.concatenate(new))
    owners, starts = np.unique(keys // cells, return_index=True)
    parts = dict(zip(owners.tolist(), np.split(keys % cells, starts[1:]), strict=True)) if len(owners) else {}
    flat = result.reshape(-1)
    for label_number in sorted(parts, key=lambda number: (-areas[number], number)):
        part = parts[label_number]
        if not flat[part].any():
            flat[part] = True


def _largest_square(mask: NDArray[np.bool_]) -> int:
    """Return the side of the largest square of True pixels in a mask bool [h, w], by chessboard distances."""
    padded = np.pad(mask, 1).astype(np.uint8)
    odd = 2 * int(cv2.distanceTransform(padded, cv2.DIST_C, 3).max()) - 1
    fits_two = padded[1:, 1:] & padded[:-1, 1:] & padded[1:, :-1] & padded[:-1, :-1]
    even = 2 * int(cv2.distanceTransform(np.ascontiguousarray(fits_two), cv2.DIST_C, 3).max()) if fits_two.any() else 0
    return max(odd, even)
