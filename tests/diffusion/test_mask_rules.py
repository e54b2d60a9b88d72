"""Thresholds and rejection rules of masks, on maps whose answer is known."""

import numpy as np
import pytest

from defect_core.diffusion.mask_rules import (
    drop_small,
    inside_foreground,
    isodata,
    strongest,
    threshold,
    touches_border_too_much,
)


def test_isodata_lies_halfway_between_two_modes_however_unequal():
    values = np.full((10, 10), 0.1)
    values[:2, :3] = 0.9
    assert isodata(values) == pytest.approx(0.5)


def test_isodata_moves_from_the_mean_to_where_both_means_are_equally_far():
    values = np.concatenate([np.linspace(0, 0.3, 90), np.linspace(0.6, 1.0, 10)])
    level = isodata(values)
    halves = values[values >= level].mean(), values[values < level].mean()
    assert level == pytest.approx(sum(halves) / 2, abs=1e-3)
    assert (values >= level).sum() == 10


def test_isodata_of_a_constant_image_is_its_value():
    assert isodata(np.full((4, 4), 0.3)) == pytest.approx(0.3)
    assert isodata(np.full((4, 4), 0.1, np.float32)) == pytest.approx(0.1)


def test_the_level_itself_lies_not_above_the_threshold():
    assert threshold(np.array([0.1, 0.2, 0.3]), 0.2).tolist() == [False, False, True]


def test_the_strongest_share_is_exact_even_among_equals_and_never_empty():
    assert strongest(np.zeros((20, 10)), 0.05).sum() == 10
    assert strongest(np.zeros((3, 3)), 0.001).sum() == 1
    values = np.arange(12.0).reshape(3, 4)
    assert (strongest(values, 0.25) == (values >= 9)).all()


def test_small_parts_are_dropped_and_a_diagonal_counts_as_connected():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = True
    mask[[3, 4, 5], [3, 4, 5]] = True
    kept = drop_small(mask, 3)
    assert kept.sum() == 3 and not kept[0, 0]
    assert drop_small(mask, 4).sum() == 0


@pytest.mark.parametrize("turns", range(4))
def test_a_stripe_along_the_border_longer_than_a_third_is_rejected(turns):
    mask = np.zeros((30, 30), bool)
    mask[0, 4:14] = True
    assert not touches_border_too_much(np.rot90(mask, turns))
    mask[0, 14] = True
    assert touches_border_too_much(np.rot90(mask, turns))
    inner = np.zeros((30, 30), bool)
    inner[1:-1, 1:-1] = True
    assert not touches_border_too_much(inner)


def test_a_mask_is_cut_to_the_object_and_emptied_when_it_missed_it():
    mask, foreground = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    mask[:, :4] = True
    foreground[:, 2:] = True
    assert (inside_foreground(mask, foreground) == (mask & foreground)).all()
    assert not inside_foreground(mask, foreground, share=0.6).any()
