"""Masks as other formats write them: polygons around their parts, and run lengths."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.data.masks import components

Point = tuple[int, int]


def outlines(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """A polygon (x, y) around each 8-connected part of a mask bool [H, W], along the edges of its pixels.

    Points are corners of pixels, 0 to W and 0 to H, clockwise as seen, the first not repeated; holes are filled.
    Parts that touch at a corner only are one polygon that passes through that corner twice.

    >>> outlines(np.array([[False, False], [False, True]]))
    [[(1, 1), (2, 1), (2, 2), (1, 2)]]
    """
    return [_outline(ndimage.binary_fill_holes(part)) for part in components(mask)]


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed code of a mask bool [H, W]: lengths of runs down the columns, unset pixels first.

    >>> run_lengths(np.array([[True, False], [True, False]]))
    [0, 2, 2]
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _outline(part: NDArray[np.bool_]) -> list[Point]:
    """One part without holes: its border edges, each with the part on its right hand, joined into a loop."""
    padded = np.pad(part, 1)
    following: dict[Point, list[Point]] = {}
    inside = padded[1:-1, 1:-1]
    # of every pixel: the neighbour across an edge, and that edge from corner to corner
    for neighbour, start, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    here = min(following, key=lambda point: (point[1], point[0]))
    first, loop = here, [here]
    before = (here[0] - 1, here[1])
    while True:
        ahead = following[here]
        # where two pixels touch at a corner only, the left turn goes over to the other one
        towards = ahead[0] if len(ahead) == 1 else max(ahead, key=lambda point: _left(before, here, point))
        ahead.remove(towards)
        before, here = here, towards
        if here == first and not following[first]:
            break
        loop.append(here)
    return [point for point, back, on in zip(loop, [loop[-1], *loop], [*loop[1:], loop[0]], strict=False)
            if (on[0] - point[0]) * (point[1] - back[1]) != (point[0] - back[0]) * (on[1] - point[1])]  # fmt: skip


def _left(before: Point, here: Point, towards: Point) -> int:
    """Positive for a left turn, as seen, on the way from a point through the next to a third."""
    came, goes = (here[0] - before[0], here[1] - before[1]), (towards[0] - here[0], towards[1] - here[1])
    return came[1] * goes[0] - came[0] * goes[1]
