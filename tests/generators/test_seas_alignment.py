"""Decoupled anomaly alignment loss of SeaS (eq. 3) on maps with a known loss, and on a tiny U-Net."""

import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import map_mask_iou
from defect_core.generators.seas.alignment import (
    TokenMaps,
    decoupled_anomaly_alignment_loss,
    decoupled_anomaly_alignment_terms,
    encoder_attention_maps,
    mask_pyramid,
    select_aligned_sides,
)
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt, token_groups

FORMS = ("paper", "official")


def _mask(*positions):
    mask = torch.zeros(2, 1, 8, 8)
    for row, column in positions:
        mask[..., row, column] = 1
    return mask


def _loss(anomaly, normal, mask, form):
    return decoupled_anomaly_alignment_loss(TokenMaps({8: anomaly}, {8: normal}), {8: mask}, form)


def _normal_term(normal, mask):
    """Return the second term of the official form for maps and masks of one side."""
    return decoupled_anomaly_alignment_terms(TokenMaps({8: mask}, {8: normal}), {8: mask}, "official")[1]


def _block_mask():
    return _mask(*((row, column) for row in range(2, 5) for column in range(3, 7)))


def test_paper_form_is_zero_if_anomaly_map_is_the_mask_and_normal_map_is_outside():
    mask = _block_mask()
    outside = 0.3 * (1 - mask)
    assert _loss(mask.clone(), outside, mask, "paper") == 0
    for row, column in ((0, 0), (3, 4)):
        changed = mask.clone()
        changed[1, 0, row, column] += 0.1
        assert _loss(changed, outside, mask, "paper") == pytest.approx(0.1**2 / 2)
    inside = outside.clone()
    inside[0, 0, 3, 4] = 0.2
    assert _loss(mask.clone(), inside, mask, "paper") == pytest.approx(0.2**2 / 2)


def test_official_form_is_zero_for_a_scaled_mask_and_a_normal_map_lowest_inside():
    mask = _block_mask()
    assert _loss(0.01 + 0.05 * mask, 0.2 - 0.1 * mask, mask, "official") == pytest.approx(0, abs=1e-10)
    assert _loss(0.01 + 0.05 * (1 - mask), 0.2 - 0.1 * mask, mask, "official") == pytest.approx(1)
    assert _loss(0.01 + 0.05 * mask, 0.1 + 0.1 * mask, mask, "official") == pytest.approx(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [_mask(), _mask((3, 3)), 0.5 * _mask((3, 3), (3, 4))], ids=["empty", "pixel", "soft"])
def test_loss_and_gradient_are_finite_for_degenerate_masks_and_constant_maps(form, mask):
    for value in (0.0, 0.1):
        anomaly, normal = (torch.full((2, 1, 8, 8), value, requires_grad=True) for _ in range(2))
        loss = _loss(anomaly, normal, mask, form)
        loss.backward()
        assert loss.isfinite() and anomaly.grad.isfinite().all() and normal.grad.isfinite().all()


def test_official_form_uses_partly_covered_positions_if_none_is_fully_covered():
    assert _normal_term(_mask((0, 0), (3, 3)), 0.5 * _mask((3, 3), (3, 4))) == 0.5


@pytest.mark.parametrize("form", FORMS)
def test_a_single_latent_cell_survives_to_the_last_side_of_the_mask_pyramid(form):
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 8 * 21 : 8 * 22, 8 * 44 : 8 * 45] = 1
    pyramid = mask_pyramid(mask, 64, (64, 32, 16), form)
    assert [tuple(pyramid[side].shape) for side in (64, 32, 16)] == [(1, 1, side, side) for side in (64, 32, 16)]
    for side in (64, 32, 16):
        cell = 21 * side // 64, 44 * side // 64
        assert pyramid[side][0, 0, cell[0], cell[1]] == 1 and pyramid[side].sum() == 1


def test_a_single_pixel_survives_the_mask_pyramid_of_the_paper_form():
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 100, 300] = 1
    assert mask_pyramid(mask, 64, (16,), "paper")[16][0, 0, 100 // 32, 300 // 32] == 1


def test_agreement_is_one_if_attention_ranks_the_mask_first_and_zero_if_last():
    mask = _block_mask()
    noise = 0.01 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    assert (map_mask_iou(0.1 * mask + noise, mask) == 1).all()
    assert (map_mask_iou(noise - 0.1 * mask, mask) == 0).all()


def test_aligned_sides_of_stable_diffusion_are_those_of_the_paper():
    assert select_aligned_sides(64, [64, 32, 16, 8]) == [32, 16]
    assert select_aligned_sides(16, [8]) == [8]
    assert select_aligned_sides(8, [8]) == [8]


@pytest.fixture(scope="module")
def tiny():
    backbone = tiny_backbone()
    prompt = UnbalancedAbnormalPrompt.from_init_words(backbone, ("dent", "scratch"), SeasConfig())
    with torch.no_grad():
        for index, rows in enumerate(prompt.tokens.embeddings.values()):
            rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(index)))
    return backbone, prompt


def _capture(backbone, states, groups, softmax):
    latents = torch.randn((len(states), 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with control_attention(backbone.denoiser).capture(groups, softmax) as maps:
        backbone.denoiser(latents, torch.tensor(50), states)
    return maps.layers


@pytest.mark.parametrize(("form", "softmax"), [("paper", "tokens"), ("official", "pixels")])
def test_the_loss_does_not_depend_on_the_order_of_the_anomaly_tokens(tiny, form, softmax):
    backbone, prompt = tiny
    prompts = prompt.encode(backbone, [("dent",), ("scratch",)])
    groups = token_groups(prompts)
    permuted = prompts.states.clone()
    span = prompts.spans[0]["defect"]
    permuted[:, span] = prompts.states[:, span].flip(1)
    assert not torch.equal(permuted, prompts.states)
    losses = []
    for states in (prompts.states, permuted):
        maps = encoder_attention_maps(_capture(backbone, states, groups, softmax), 2)
        masks = mask_pyramid(_block_mask(), 8, maps.anomaly, form)
        losses.append(decoupled_anomaly_alignment_loss(maps, masks, form).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_first_term_has_gradients_only_for_the_tokens_of_the_images_defect(tiny):
    backbone, prompt = tiny
    prompt.requires_grad_(True)
    prompts = prompt.encode(backbone, [("dent",)])
    states = prompts.states.detach().requires_grad_(True)
    first = _capture(backbone, states, token_groups(prompts), "pixels")[:1]
    maps = encoder_attention_maps(first, 1)
    masks = mask_pyramid(_block_mask()[:1], 8, maps.anomaly, "official")
    decoupled_anomaly_alignment_terms(maps, masks, "official")[0].backward()
    has_gradient = states.grad[0].abs().amax(-1) > 0
    assert torch.equal(has_gradient, prompts.token_mask("defect")[0])

    layers = _capture(backbone, prompt.encode(backbone, [("dent",)]).states, token_groups(prompts), "tokens")
    maps = encoder_attention_maps(layers, 1)
    decoupled_anomaly_alignment_terms(maps, mask_pyramid(_block_mask()[:1], 8, maps.anomaly, "paper"), "paper")[
        0
    ].backward()
    assert prompt.tokens["dent"].grad.abs().amin(0).max() > 0 and prompt.tokens["scratch"].grad is None
    prompt.requires_grad_(False)


def test_only_layers_of_the_encoder_are_aligned():
    ones, zeros = torch.ones(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    layers = [("down_blocks.0.attn2", ones), ("mid_block.attn2", zeros), ("up_blocks.1.attn2", zeros)]
    maps = encoder_attention_maps(layers, 2)
    assert (maps.anomaly[8] == 1).all() and (maps.normal[8] == 1).all()


def test_official_form_uses_only_fully_covered_positions_if_there_are_any():
    soft = _mask((2, 2)) + 0.5 * _mask((6, 6))
    normal = _mask((6, 6))  # attention only where the mask is one half
    assert _normal_term(normal, soft) == 0
    assert _normal_term(normal, 0.5 * soft) == pytest.approx(0.5)
