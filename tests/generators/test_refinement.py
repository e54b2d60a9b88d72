"""Refined masks: inside the drawn region, where something changed."""

import numpy as np

from defect_core.generators.disentangled_inversion.refinement import refine_by_attention, refine_by_difference

ALLOWED = np.zeros((64, 64), bool)
ALLOWED[16:48, 16:48] = True


def test_the_difference_mask_finds_what_was_drawn_and_nothing_outside_the_region():
    rebuilt = np.full((64, 64, 3), 100.0)
    drawn = rebuilt + np.random.default_rng(0).normal(0, 1, rebuilt.shape)
    defect = np.zeros((64, 64), bool)
    defect[24:32, 20:40] = True
    drawn[defect] += 60
    drawn[50:60, 50:60] += 60
    mask, soft = refine_by_difference(drawn, rebuilt, ALLOWED)
    assert (mask & ~ALLOWED).sum() == 0
    assert (mask & defect).sum() / (mask | defect).sum() > 0.8
    assert soft.min() >= 0 and soft.max() <= 1


def test_no_change_gives_an_empty_difference_mask():
    flat = np.full((64, 64, 3), 100.0)
    mask, _ = refine_by_difference(flat + 1, flat, ALLOWED)
    assert not mask.any()


def test_the_attention_mask_is_a_nonempty_part_of_the_region_at_its_peak():
    attention = np.zeros((16, 16))
    attention[6:9, 6:9] = 0.04
    mask, _ = refine_by_attention(attention, ALLOWED)
    assert mask.any() and not (mask & ~ALLOWED).any()
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - 29.5) < 2 and abs(columns.mean() - 29.5) < 2


def test_a_constant_attention_map_falls_back_to_the_region():
    mask, _ = refine_by_attention(np.full((16, 16), 0.3), ALLOWED)
    assert (mask == ALLOWED).all()
