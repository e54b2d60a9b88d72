"""What is measured of a drawn pair, and what keeps it out."""

from dataclasses import dataclass

import numpy as np
import pytest

from defect_core.generators.base import Example, SyntheticPair
from defect_core.synthesis.filter import NearestDefectIndex, measure_pair


@dataclass
class FilterLimits:
    min_change: float = 2.0
    min_area: int = 4
    max_change_outside: float | None = None
    min_on_product: float = 0.0
    min_distance: float = 0.0


def _plate():
    """A light square product on a dark ground."""
    image = np.full((64, 64, 3), 20, np.uint8)
    image[12:52, 12:52] = 180
    return image


def _pair(box, grey=90, outside=0):
    normal, mask = _plate(), np.zeros((64, 64), bool)
    mask[box] = True
    image = normal.copy()
    image[~mask] += np.uint8(outside)
    image[mask] = grey
    return SyntheticPair("s", image, mask), normal


ON, HALF, OFF = np.s_[20:28, 20:28], np.s_[20:28, 8:16], np.s_[2:8, 2:8]


def test_change_is_measured_inside_and_outside():
    seen = measure_pair(*_pair(ON, outside=3), FilterLimits())
    assert (seen.change_inside, seen.change_outside, seen.quality, seen.reason) == (90, 3, 87, "")
    assert seen.nearest is None and seen.distance is None


@pytest.mark.parametrize(("box", "low", "high"), [(ON, 1, 1), (HALF, 0.3, 0.7), (OFF, 0, 0)])
def test_the_part_on_the_product_is_measured(box, low, high):
    assert low <= measure_pair(*_pair(box), FilterLimits()).on_product <= high


@pytest.mark.parametrize(
    ("pair", "limits", "reason"),
    [
        (_pair(np.s_[20:21, 20:22]), FilterLimits(), "mask of 2 px, below 4"),
        (_pair(ON, grey=181), FilterLimits(), "change inside the mask 1.0, below 2"),
        (_pair(ON, outside=3), FilterLimits(max_change_outside=2.5), "change outside the mask 3.0, above 2.5"),
        (_pair(ON, outside=3), FilterLimits(max_change_outside=3.0), ""),
        (_pair(OFF), FilterLimits(min_on_product=0.25), "part of the mask on the product 0.00, below 0.25"),
        (_pair(HALF), FilterLimits(min_on_product=0.25), ""),
        (_pair(np.s_[0:0, 0:0]), FilterLimits(), "mask of 0 px, below 4"),
    ],
)
def test_a_limit_that_is_broken_is_the_reason(pair, limits, reason):
    assert measure_pair(*pair, limits).reason == reason


def _examples():
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        image, mask = _plate(), np.zeros((64, 64), bool)
        mask[20:32, 18:34] = True
        image[mask] = rng.integers(0, 255, (mask.sum(), 3))
        made.append(Example("plate", "dent", image, mask, f"dent/{number}.png"))
    return made


def test_a_moved_copy_is_nearest_to_what_it_was_copied_from():
    examples = _examples()
    likeness = NearestDefectIndex.of(examples)
    moved = SyntheticPair("s", np.roll(examples[1].image, (4, 3), (0, 1)), np.roll(examples[1].mask, (4, 3), (0, 1)))
    seen = measure_pair(moved, _plate(), FilterLimits(min_distance=5), likeness)
    assert seen.nearest == "dent/1.png" and seen.distance == pytest.approx(0, abs=1e-3)
    assert seen.reason == "distance to a training example 0.0, below 5"


def test_another_defect_is_as_far_as_real_ones_are_from_each_other():
    examples = _examples()
    likeness = NearestDefectIndex.of(examples[:2])
    name, distance = likeness.nearest(examples[2].image, examples[2].mask)
    within = NearestDefectIndex.of(examples[:1]).nearest(examples[1].image, examples[1].mask)[1]
    assert name in likeness.names and 0.7 < distance / within < 1.3
    pair = SyntheticPair("s", examples[2].image, examples[2].mask)
    assert measure_pair(pair, _plate(), FilterLimits(min_distance=5), likeness).reason == ""


def test_a_defect_at_the_very_corner_has_a_window():
    image, mask = _plate(), np.zeros((64, 64), bool)
    mask[0, 0] = mask[63, 63] = True
    assert NearestDefectIndex.of([Example("p", "d", image, mask, "a")]).nearest(image, mask) == ("a", 0.0)
