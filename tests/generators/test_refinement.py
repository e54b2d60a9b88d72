"""Refined masks are parts of the generated region where the image changed."""

import numpy as np

from defect_core.generators.disentangled_inversion.refinement import refine_by_attention, refine_by_difference

ALLOWED = np.zeros((64, 64), bool)
ALLOWED[16:48, 16:48] = True


def test_the_difference_mask_is_the_change_inside_the_region():
    reconstructed = np.full((64, 64, 3), 100.0)
    generated = reconstructed + np.random.default_rng(0).normal(0, 1, reconstructed.shape)
    defect = np.zeros((64, 64), bool)
    defect[24:32, 20:40] = True
    generated[defect] += 60
    generated[50:60, 50:60] += 60  # outside the region
    mask, soft_mask = refine_by_difference(generated, reconstructed, ALLOWED)
    assert not (mask & ~ALLOWED).any()
    assert (mask & defect).sum() / (mask | defect).sum() > 0.8
    assert soft_mask.min() >= 0
    assert soft_mask.max() <= 1


def test_no_change_gives_an_empty_difference_mask():
    flat = np.full((64, 64, 3), 100.0)
    mask, _ = refine_by_difference(flat + 1, flat, ALLOWED)
    assert not mask.any()


def test_the_attention_mask_is_at_the_peak_of_the_attention():
    attention = np.zeros((16, 16))
    attention[6:9, 6:9] = 0.04
    mask, _ = refine_by_attention(attention, ALLOWED)
    assert mask.any()
    assert not (mask & ~ALLOWED).any()
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - 29.5) < 2
    assert abs(columns.mean() - 29.5) < 2


def test_constant_attention_gives_the_whole_region():
    mask, _ = refine_by_attention(np.full((16, 16), 0.3), ALLOWED)
    assert (mask == ALLOWED).all()
