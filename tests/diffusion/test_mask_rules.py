"""Thresholds and rejection rules of masks, on maps with a known answer."""

import numpy as np
import pytest

from defect_core.diffusion.mask_rules import isodata_threshold, select_strongest, touches_border_too_much


def test_isodata_is_halfway_between_two_modes_of_any_size():
    values = np.full((10, 10), 0.1)
    values[:2, :3] = 0.9
    assert isodata_threshold(values) == pytest.approx(0.5)


def test_isodata_has_the_same_distance_to_both_class_means():
    values = np.concatenate([np.linspace(0, 0.3, 90), np.linspace(0.6, 1.0, 10)])
    level = isodata_threshold(values)
    means = values[values >= level].mean(), values[values < level].mean()
    assert level == pytest.approx(sum(means) / 2, abs=1e-3)
    assert (values >= level).sum() == 10


def test_isodata_of_a_constant_image_is_its_value():
    assert isodata_threshold(np.full((4, 4), 0.3)) == pytest.approx(0.3)
    assert isodata_threshold(np.full((4, 4), 0.1, np.float32)) == pytest.approx(0.1)


def test_strongest_fraction_is_exact_with_equal_values_and_never_empty():
    assert select_strongest(np.zeros((20, 10)), 0.05).sum() == 10
    assert select_strongest(np.zeros((3, 3)), 0.001).sum() == 1
    values = np.arange(12.0).reshape(3, 4)
    assert (select_strongest(values, 0.25) == (values >= 9)).all()


@pytest.mark.parametrize("turns", range(4))
def test_border_stripe_longer_than_a_third_is_too_much(turns):
    mask = np.zeros((30, 30), bool)
    mask[0, 4:14] = True
    assert not touches_border_too_much(np.rot90(mask, turns))
    mask[0, 14] = True
    assert touches_border_too_much(np.rot90(mask, turns))
    inner = np.zeros((30, 30), bool)
    inner[1:-1, 1:-1] = True
    assert not touches_border_too_much(inner)
