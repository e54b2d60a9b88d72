"""Is a drawn pair good enough? What can be measured of it without a network, and the limits it must keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from defect_core.data.masks import bounding_box
from defect_core.data.placement import foreground
from defect_core.generators.base import Example, Image, Mask, SyntheticPair

WINDOW = 32  # side in pixels at which two defects are compared
MARGIN = 0.25  # of the mask's box, on each side


class FilterLimits(Protocol):
    """What a pair must keep; `SynthesisPlan` says it."""

    min_change: float
    min_area: int
    max_change_outside: float | None
    min_on_product: float
    min_distance: float


class PairMeasurements(NamedTuple):
    """Facts of a pair.

    `change_inside`, `change_outside`: mean absolute change against the normal image, inside and outside the mask, in
    grey levels of 255. `on_product`: part of the mask that lies on the product (1 where all is product, or unsure).
    `nearest`: name of the real training example that looks most like it, `distance` to it, in grey levels (see
    `NearestDefectIndex`). `reason`: why it is rejected, "" when it is not.
    """

    change_inside: float
    change_outside: float
    on_product: float
    nearest: str | None
    distance: float | None
    reason: str

    @property
    def quality(self) -> float:
        """Change inside minus change outside: a defect that can be seen, where the mask says, on a kept background."""
        return round(self.change_inside - self.change_outside, 4)


@dataclass(frozen=True)
class NearestDefectIndex:
    """Real defects of one type as small windows, to find the one that a drawn defect looks most like.

    A window is the box around the mask, a quarter wider on each side, brought to 32 px; two of them differ by the root
    mean square of their pixels' difference, in grey levels. So a copy that was moved is close to 0, whatever lies
    around it, and two real defects of one type are as far apart as they are.
    """

    names: tuple[str, ...]
    windows: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "NearestDefectIndex":
        """Of real examples with masks; at least one."""
        windows = [_window(example.image, example.mask) for example in examples if example.mask is not None]
        return cls(tuple(example.name for example in examples if example.mask is not None), np.stack(windows))

    def nearest(self, image: Image, mask: Mask) -> tuple[str, float]:
        """Name of the nearest example and the distance to it."""
        gaps = np.sqrt(((self.windows - _window(image, mask)) ** 2).mean((1, 2, 3)))
        index = int(gaps.argmin())
        return self.names[index], round(float(gaps[index]), 4)


def measure_pair(
    pair: SyntheticPair, normal: Image, limits: FilterLimits, likeness: NearestDefectIndex | None = None
) -> PairMeasurements:
    """Measure a pair against its normal image and, with `likeness`, against the real defects of its type."""
    change = np.abs(pair.image.astype(np.int16) - normal.astype(np.int16)).mean(-1)
    area = int(pair.mask.sum())
    inside = float(change[pair.mask].mean()) if area else 0.0
    outside = float(change[~pair.mask].mean()) if area < pair.mask.size else 0.0
    on_product = float(foreground(normal)[pair.mask].mean()) if area else 0.0
    nearest, distance = likeness.nearest(pair.image, pair.mask) if likeness and area else (None, None)
    reason = ""
    if area < limits.min_area:
        reason = f"mask of {area} px, below {limits.min_area}"
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
    top, left, bottom, right = bounding_box(mask)
    rows, columns = max(1, round(MARGIN * (bottom - top))), max(1, round(MARGIN * (right - left)))
    box = (max(0, left - columns), max(0, top - rows), min(image.shape[1], right + columns), bottom + rows)
    box = (*box[:3], min(image.shape[0], box[3]))
    small = PILImage.fromarray(image).resize((WINDOW, WINDOW), PILImage.Resampling.BILINEAR, box=box)
    return np.asarray(small, dtype=np.float32)
