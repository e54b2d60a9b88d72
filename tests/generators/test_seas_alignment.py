"""SeaS: the decoupled alignment loss on maps whose answer is known, and on a tiny U-Net (brief §3.6, 1 to 3 and 5)."""

import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import agreement
from defect_core.generators.seas.alignment import (
    SideMaps,
    aligned_sides,
    alignment_terms,
    encoder_maps,
    mask_pyramid,
)
from defect_core.generators.seas.config import Config
from defect_core.generators.seas.finetune import Words, token_groups

FORMS = ("paper", "compat")


def _mask(*places):
    mask = torch.zeros(2, 1, 8, 8)
    for row, column in places:
        mask[..., row, column] = 1
    return mask


def _loss(anomaly, normal, mask, form):
    return torch.stack(alignment_terms(SideMaps({8: anomaly}, {8: normal}), {8: mask}, form)).sum()


def _block():
    return _mask(*((row, column) for row in range(2, 5) for column in range(3, 7)))


def test_in_paper_form_the_loss_is_zero_only_where_attention_is_the_mask_and_the_normal_token_keeps_off_it():
    mask = _block()
    outside = 0.3 * (1 - mask)
    assert _loss(mask.clone(), outside, mask, "paper") == 0
    for row, column in ((0, 0), (3, 4)):
        changed = mask.clone()
        changed[1, 0, row, column] += 0.1
        assert _loss(changed, outside, mask, "paper") == pytest.approx(0.1**2 / 2)
    inside = outside.clone()
    inside[0, 0, 3, 4] = 0.2
    assert _loss(mask.clone(), inside, mask, "paper") == pytest.approx(0.2**2 / 2)


def test_in_compat_form_the_loss_is_zero_for_a_stretched_mask_and_a_normal_map_least_inside_it():
    mask = _block()
    assert _loss(0.01 + 0.05 * mask, 0.2 - 0.1 * mask, mask, "compat") == pytest.approx(0, abs=1e-10)
    assert _loss(0.01 + 0.05 * (1 - mask), 0.2 - 0.1 * mask, mask, "compat") == pytest.approx(1)
    assert _loss(0.01 + 0.05 * mask, 0.1 + 0.1 * mask, mask, "compat") == pytest.approx(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [_mask(), _mask((3, 3)), 0.5 * _mask((3, 3), (3, 4))], ids=["empty", "pixel", "soft"])
def test_the_loss_and_its_gradient_are_finite_for_degenerate_masks_and_constant_maps(form, mask):
    for value in (0.0, 0.1):
        anomaly, normal = (torch.full((2, 1, 8, 8), value, requires_grad=True) for _ in range(2))
        loss = _loss(anomaly, normal, mask, form)
        loss.backward()
        assert loss.isfinite() and anomaly.grad.isfinite().all() and normal.grad.isfinite().all()


def test_where_no_place_is_fully_defect_compat_takes_those_that_are_partly():
    mask = 0.5 * _mask((3, 3), (3, 4))
    normal = _mask((0, 0), (3, 3))
    assert alignment_terms(SideMaps({8: mask}, {8: normal}), {8: mask}, "compat")[1] == 0.5


@pytest.mark.parametrize("form", FORMS)
def test_the_mask_pyramid_has_its_sides_and_a_single_latent_cell_survives_to_the_last(form):
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 8 * 21 : 8 * 22, 8 * 44 : 8 * 45] = 1
    pyramid = mask_pyramid(mask, 64, (64, 32, 16), form)
    assert [tuple(pyramid[side].shape) for side in (64, 32, 16)] == [(1, 1, side, side) for side in (64, 32, 16)]
    for side in (64, 32, 16):
        cell = 21 * side // 64, 44 * side // 64
        assert pyramid[side][0, 0, cell[0], cell[1]] == 1 and pyramid[side].sum() == 1


def test_a_single_pixel_survives_the_paper_pyramid():
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 100, 300] = 1
    assert mask_pyramid(mask, 64, (16,), "paper")[16][0, 0, 100 // 32, 300 // 32] == 1


def test_agreement_is_one_for_attention_that_ranks_the_mask_first_and_zero_for_its_opposite():
    mask = _block()
    noise = 0.01 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    assert (agreement(0.1 * mask + noise, mask) == 1).all()
    assert (agreement(noise - 0.1 * mask, mask) == 0).all()


def test_stable_diffusions_aligned_sides_are_those_of_the_paper():
    assert aligned_sides(64, [64, 32, 16, 8]) == [32, 16]
    assert aligned_sides(16, [8]) == [8]
    assert aligned_sides(8, [8]) == [8]


@pytest.fixture(scope="module")
def tiny():
    backbone = tiny_backbone()
    words = Words.begin(backbone, ("dent", "scratch"), Config())
    with torch.no_grad():
        for index, rows in enumerate(words.tokens.vectors.values()):
            rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(index)))
    return backbone, words


def _capture(backbone, states, groups, softmax):
    latents = torch.randn((len(states), 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with control_attention(backbone.denoiser).capture(groups, softmax) as maps:
        backbone.denoiser(latents, torch.tensor(50), states)
    return maps.layers


@pytest.mark.parametrize(("form", "softmax"), [("paper", "tokens"), ("compat", "pixels")])
def test_the_order_of_the_anomaly_tokens_does_not_matter_to_the_loss(tiny, form, softmax):
    backbone, words = tiny
    prompts = words.encode(backbone, [("dent",), ("scratch",)])
    groups = token_groups(prompts)
    permuted = prompts.states.clone()
    span = prompts.spans[0]["defect"]
    permuted[:, span] = prompts.states[:, span].flip(1)
    assert not torch.equal(permuted, prompts.states)
    losses = []
    for states in (prompts.states, permuted):
        maps = encoder_maps(_capture(backbone, states, groups, softmax), 2)
        masks = mask_pyramid(_block(), 8, maps.anomaly, form)
        losses.append(torch.stack(alignment_terms(maps, masks, form)).sum().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_map_term_reaches_only_the_columns_and_words_of_the_image_s_own_defect(tiny):
    backbone, words = tiny
    words.requires_grad_(True)
    prompts = words.encode(backbone, [("dent",)])
    states = prompts.states.detach().requires_grad_(True)
    first = _capture(backbone, states, token_groups(prompts), "pixels")[:1]
    maps = encoder_maps(first, 1)
    masks = mask_pyramid(_block()[:1], 8, maps.anomaly, "compat")
    alignment_terms(maps, masks, "compat")[0].backward()
    reached = states.grad[0].abs().amax(-1) > 0
    assert torch.equal(reached, prompts.marks("defect")[0])

    layers = _capture(backbone, words.encode(backbone, [("dent",)]).states, token_groups(prompts), "tokens")
    maps = encoder_maps(layers, 1)
    alignment_terms(maps, mask_pyramid(_block()[:1], 8, maps.anomaly, "paper"), "paper")[0].backward()
    assert words.tokens["dent"].grad.abs().amin(0).max() > 0 and words.tokens["scratch"].grad is None
    words.requires_grad_(False)


def test_only_the_encoders_layers_are_aligned():
    inside, outside = torch.ones(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    layers = [("down_blocks.0.attn2", inside), ("mid_block.attn2", outside), ("up_blocks.1.attn2", outside)]
    maps = encoder_maps(layers, 2)
    assert (maps.anomaly[8] == 1).all() and (maps.normal[8] == 1).all()


def test_in_compat_form_the_normal_token_is_held_to_wholly_covered_places_if_there_are_any():
    soft = _mask((2, 2)) + 0.5 * _mask((6, 6))
    normal = _mask((6, 6))  # looks only where the mask is half
    assert alignment_terms(SideMaps({8: soft}, {8: normal}), {8: soft}, "compat")[1] == 0
    assert alignment_terms(SideMaps({8: soft}, {8: normal}), {8: 0.5 * soft}, "compat")[1] == pytest.approx(0.5)
