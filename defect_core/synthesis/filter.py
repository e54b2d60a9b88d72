"""The filter: what can be measured of a generated pair without a network, and whether it is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from defect_core.data.foreground import find_foreground
from defect_core.data.masks import bounding_box
from defect_core.generators.base import Example, Image, Mask, SyntheticPair
from defect_core.synthesis.config import FilterLimits

WINDOW = 32  # Side in pixels at which two defects are compared.
MARGIN = 0.25  # Added to the bounding box of the mask on each side, as a fraction of its size.


class PairMeasurements(NamedTuple):
    """Measurements of one pair.

    Attributes:
        change_inside: mean absolute change against the normal image inside the mask, in grey levels of 255.
        change_outside: the same outside the mask.
        on_product: fraction of the mask that is on the product; 1 if the product fills the image or is not found.
        nearest: name of the most similar real training example; None without a mask or an index.
        distance: distance to it in grey levels (see `NearestDefectIndex`).
        reason: why the pair is rejected; "" if it is accepted.
    """

    change_inside: float
    change_outside: float
    on_product: float
    nearest: str | None
    distance: float | None
    reason: str

    @property
    def quality(self) -> float:
        """Change inside minus change outside: high for a visible defect on an unchanged background."""
        return round(self.change_inside - self.change_outside, 4)


@dataclass(frozen=True)
class NearestDefectIndex:
    """Real defects of one type as small windows, to find the one that a generated defect is most similar to.

    A window is the bounding box of the mask, enlarged by a quarter on each side and resized to 32 x 32 pixels. The
    distance of two windows is the root mean square of their pixel differences, in grey levels. A copy has a distance
    near 0 wherever it is pasted.

    Attributes:
        names: name of each example.
        windows: float32 [N, 32, 32, 3], 0 to 255.
    """

    names: tuple[str, ...]
    windows: NDArray[np.float32]

    @classmethod
    def from_examples(cls, examples: Sequence[Example]) -> "NearestDefectIndex":
        """Build the index of real examples; at least one must have a mask."""
        masked = [(example, example.mask) for example in examples if example.mask is not None]
        return cls(
            tuple(example.name for example, _ in masked),
            np.stack([_window(example.image, mask) for example, mask in masked]),
        )

    def nearest(self, image: Image, mask: Mask) -> tuple[str, float]:
        """Return the name of the most similar example and the distance to it."""
        distances = np.sqrt(((self.windows - _window(image, mask)) ** 2).mean((1, 2, 3)))
        index = int(distances.argmin())
        return self.names[index], round(float(distances[index]), 4)


def measure_pair(
    pair: SyntheticPair,
    normal: Image,
    limits: FilterLimits,
    index: NearestDefectIndex | None = None,
    allowed: Mask | None = None,
) -> PairMeasurements:
    """Measure a pair and compare it with the limits.

    Args:
        pair: the generated image and mask.
        normal: uint8 [H, W, 3], the normal image of the request.
        limits: what an accepted pair must satisfy, besides having no reason of its generator to reject it.
        index: real defects of the same type; None: no distance is measured.
        allowed: bool [H, W], region of the normal image that must hold the whole mask; None: all of it.
    """
    change = np.abs(pair.image.astype(np.int16) - normal.astype(np.int16)).mean(-1)
    area = int(pair.mask.sum())
    inside = float(change[pair.mask].mean()) if area else 0.0
    outside = float(change[~pair.mask].mean()) if area < pair.mask.size else 0.0
    on_product = float(find_foreground(normal)[pair.mask].mean()) if area else 0.0
    nearest, distance = index.nearest(pair.image, pair.mask) if index and area else (None, None)
    reason = pair.reject_reason
    if reason:
        pass
    elif area < limits.min_area:
        reason = f"mask of {area} px, below {limits.min_area}"
    elif allowed is not None and (pair.mask & ~allowed).any():
        reason = f"part of the mask outside its region {(pair.mask & ~allowed).sum() / area:.2f}"
    elif inside < limits.min_change:
        reason = f"change inside the mask {inside:.1f}, below {limits.min_change:g}"
    elif limits.max_change_outside is not None and outside > limits.max_change_outside:
        reason = f"change outside the mask {outside:.1f}, above {limits.max_change_outside:g}"
    elif on_product < limits.min_on_product:
        reason = f"part of the mask on the product {on_product:.2f}, below {limits.min_on_product:g}"
    elif distance is not None and distance < limits.min_distance:
        reason = f"distance to a training example {distance:.1f}, below {limits.min_distance:g}"
    return PairMeasurements(round(inside, 4), round(outside, 4), round(on_product, 4), nearest, distance, reason)


def _window(image: Image, mask: Mask) -> NDArray[np.float32]:
    """Return the enlarged bounding box of a mask as float32 [32, 32, 3]."""
    top, left, bottom, right = bounding_box(mask)
    rows, columns = max(1, round(MARGIN * (bottom - top))), max(1, round(MARGIN * (right - left)))
    height, width = image.shape[:2]
    box = (max(0, left - columns), max(0, top - rows), min(width, right + columns), min(height, bottom + rows))
    resized = PILImage.fromarray(image).resize((WINDOW, WINDOW), PILImage.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32)
