"""Measurements of a generated pair, and the limits that reject it."""

from functools import partial

import numpy as np
import pytest

from defect_core.generators.base import Example, SyntheticPair
from defect_core.synthesis.config import FilterLimits
from defect_core.synthesis.filter import NearestDefectIndex, measure_pair

limits_of = partial(FilterLimits, min_on_product=0.0)


def _plate():
    """A bright square product on a dark background."""
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
    measured = measure_pair(*_pair(ON, outside=3), limits_of())
    assert (measured.change_inside, measured.change_outside, measured.quality, measured.reason) == (90, 3, 87, "")
    assert measured.nearest is None and measured.distance is None


@pytest.mark.parametrize(("box", "low", "high"), [(ON, 1, 1), (HALF, 0.3, 0.7), (OFF, 0, 0)])
def test_the_fraction_on_the_product_is_measured(box, low, high):
    assert low <= measure_pair(*_pair(box), limits_of()).on_product <= high


@pytest.mark.parametrize(
    ("pair", "limits", "reason"),
    [
        (_pair(np.s_[20:21, 20:22]), limits_of(), "mask of 2 px, below 4"),
        (_pair(ON, grey=181), limits_of(), "change inside the mask 1.0, below 2"),
        (_pair(ON, outside=3), limits_of(max_change_outside=2.5), "change outside the mask 3.0, above 2.5"),
        (_pair(ON, outside=3), limits_of(max_change_outside=3.0), ""),
        (_pair(OFF), limits_of(min_on_product=0.25), "part of the mask on the product 0.00, below 0.25"),
        (_pair(HALF), limits_of(min_on_product=0.25), ""),
        (_pair(np.s_[0:0, 0:0]), limits_of(), "mask of 0 px, below 4"),
    ],
)
def test_the_reason_names_the_limit_that_is_exceeded(pair, limits, reason):
    assert measure_pair(*pair, limits).reason == reason


def _examples():
    rng = np.random.default_rng(0)
    examples = []
    for number in range(3):
        image, mask = _plate(), np.zeros((64, 64), bool)
        mask[20:32, 18:34] = True
        image[mask] = rng.integers(0, 255, (mask.sum(), 3))
        examples.append(Example("plate", "dent", image, mask, f"dent/{number}.png"))
    return examples


def test_a_moved_copy_is_nearest_to_its_original():
    examples = _examples()
    index = NearestDefectIndex.from_examples(examples)
    moved = SyntheticPair("s", np.roll(examples[1].image, (4, 3), (0, 1)), np.roll(examples[1].mask, (4, 3), (0, 1)))
    measured = measure_pair(moved, _plate(), limits_of(min_distance=5), index)
    assert measured.nearest == "dent/1.png" and measured.distance == pytest.approx(0, abs=1e-3)
    assert measured.reason == "distance to a training example 0.0, below 5"


def test_a_different_defect_is_as_far_as_real_defects_are_from_each_other():
    examples = _examples()
    index = NearestDefectIndex.from_examples(examples[:2])
    name, distance = index.nearest(examples[2].image, examples[2].mask)
    within = NearestDefectIndex.from_examples(examples[:1]).nearest(examples[1].image, examples[1].mask)[1]
    assert name in index.names and 0.7 < distance / within < 1.3
    pair = SyntheticPair("s", examples[2].image, examples[2].mask)
    assert measure_pair(pair, _plate(), limits_of(min_distance=5), index).reason == ""


def test_a_defect_in_the_corner_has_a_window():
    image, mask = _plate(), np.zeros((64, 64), bool)
    mask[0, 0] = mask[63, 63] = True
    assert NearestDefectIndex.from_examples([Example("p", "d", image, mask, "a")]).nearest(image, mask) == ("a", 0.0)
