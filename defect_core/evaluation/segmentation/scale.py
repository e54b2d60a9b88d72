"""The working resolution of `segment.image_size: auto`: scale of the images, tiles and their overlap (no torch).

The rule needs the sizes of the images and the widths of the defect components only. All real images of a product, of
both sides of the split, decide together, before any training. Every arm therefore has the same resolution.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MIN_DEFECT_WIDTH = 3
"""Smallest width of a defect in pixels of the working resolution."""
REDUCED_WIDTH = 3.5
"""Width to which the narrowest defect is reduced. A mask whose edges are between pixels loses up to half a pixel."""
WIDTH_QUANTILE = 0.05
"""Quantile of the component widths that counts as the narrowest. Of up to 20 components it is the smallest width."""
MIN_LONGER_SIDE = 256
"""Images are not reduced below this longer side, in pixels."""
MAX_ENLARGED_PIXELS = 2**23
"""Images are enlarged only up to this number of pixels."""
TILE, TILE_STEP = 256, 32
CROPS_PER_IMAGE = 8
"""Training crops of each image, if an image does not fit in one tile."""
RULE = (
    f"the narrowest defect ({WIDTH_QUANTILE:.0%} quantile of the widths of the real defect components of both splits; "
    f"width: side of the largest square inside) is at least {MIN_DEFECT_WIDTH} px wide; images are reduced to a longer "
    f"side of at least {MIN_LONGER_SIDE} px, or enlarged up to {MAX_ENLARGED_PIXELS} px"
)


class WorkingScale(NamedTuple):
    """Resolution at which a segmenter is trained and tested.

    Attributes:
        scale: working pixels per image pixel, along both axes.
        tile: side in working pixels of the square that the network sees; a multiple of 32.
        overlap: number of working pixels that neighbouring tiles share at least.
        defect_width: width in image pixels of the narrowest defect; None without defects.
        crops: training crops of each image.
    """

    scale: float
    tile: int
    overlap: int
    defect_width: int | None
    crops: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of an image at the working resolution, each at least 1."""
        return max(1, round(height * self.scale)), max(1, round(width * self.scale))

    def protocol(self) -> dict[str, Any]:
        """Return what the protocol of a result says about the resolution."""
        return {
            "image_size": "auto",
            "scale": round(self.scale, 6),
            "tile": self.tile,
            "overlap": self.overlap,
            "crops_per_image": self.crops,
            "narrowest_defect_px": self.defect_width,
            "narrowest_defect_working_px": None
            if self.defect_width is None
            else round(self.defect_width * self.scale, 2),
            "resolution_rule": RULE,
        }


def choose_scale(sizes: Iterable[tuple[int, int]], widths: Sequence[int]) -> WorkingScale:
    """Return the working resolution of a product.

    Args:
        sizes: height and width of each image in pixels.
        widths: width of each defect component in pixels (see `data.masks.component_widths`), at least 1.

    Raises:
        ValueError: no size.

    >>> choose_scale([(500, 1260)], [7, 9, 12])
    WorkingScale(scale=0.5, tile=256, overlap=64, defect_width=7, crops=8)
    >>> choose_scale([(12000, 12000)], [4]).scale
    0.875
    """
    sides = list(sizes)
    if not sides:
        raise ValueError("no image size; expected at least one")
    longer, pixels = max(max(side) for side in sides), max(height * width for height, width in sides)
    narrowest = int(np.quantile(widths, WIDTH_QUANTILE, method="inverted_cdf")) if len(widths) else None
    scale = min(1.0, MIN_LONGER_SIDE / longer)
    if narrowest is not None:
        if narrowest >= MIN_DEFECT_WIDTH:
            scale = max(scale, min(1.0, REDUCED_WIDTH / narrowest))
        else:
            # A whole factor repeats pixels, so that no edge of a mask is between two pixels.
            factor = -(-MIN_DEFECT_WIDTH // narrowest)
            while factor > 1 and pixels * factor**2 > MAX_ENLARGED_PIXELS:
                factor -= 1
            scale = float(factor)
    working = max(1, round(longer * scale))
    tile = min(TILE, -(-working // TILE_STEP) * TILE_STEP)
    return WorkingScale(scale, tile, tile // 4, narrowest, CROPS_PER_IMAGE if working > tile else 1)


def share_tile(scales: Mapping[str, WorkingScale]) -> dict[str, WorkingScale]:
    """Return the scales with the largest tile and number of crops, for one network over several products."""
    tile, crops = max(scale.tile for scale in scales.values()), max(scale.crops for scale in scales.values())
    return {name: scale._replace(tile=tile, overlap=tile // 4, crops=crops) for name, scale in scales.items()}


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the first pixel of each tile along one axis; they cover all pixels and are evenly spaced.

    Args:
        length: number of pixels, at least `tile`.
        tile: side of a tile.
        overlap: number of pixels that neighbours share at least.

    >>> tile_starts(500, 256, 64)
    [0, 122, 244]
    """
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]
