"""Guidance of several branches, and blending around a mask."""

import torch

from defect_core.diffusion.guidance import blend, combine_guidance
from defect_core.diffusion.samplers import noise_from_seeds


def test_one_branch_is_classifier_free_guidance() -> None:
    base, branch = noise_from_seeds([1, 2], (4, 8, 8))
    assert torch.allclose(combine_guidance(base, (5.0, branch)), -4 * base + 5 * branch, atol=1e-5)
    assert torch.equal(combine_guidance(base, (0.0, branch)), base)


def test_several_branches_add_up() -> None:
    base, one, two = noise_from_seeds([1, 2, 3], (4, 8, 8))
    expected = base + 8 * (one - base) + 2 * (two - base)
    assert torch.allclose(combine_guidance(base, (8.0, one), (2.0, two)), expected, atol=1e-5)


def test_blending_keeps_both_sides_exactly() -> None:
    inner, outer = noise_from_seeds([1, 2, 3, 4], (4, 8, 8)).split(2)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:6] = 1
    is_inside = mask.bool().expand_as(inner)
    blended = blend(inner, outer, mask)
    assert torch.equal(blended[is_inside], inner[is_inside])
    assert torch.equal(blended[~is_inside], outer[~is_inside])
