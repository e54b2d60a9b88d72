"""Formulas of CADiff against their definitions: interaction module, losses, attention re-weighting, composition."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from defect_core.diffusion.attention import AttentionMaps, control_attention
from defect_core.generators.cadiff.attention_reweighting import (
    DelayedFocusScheduler,
    attention_focus,
    masked_focus_weights,
    sample_strength,
)
from defect_core.generators.cadiff.composition import split_defect_names, split_mask
from defect_core.generators.cadiff.control_branch import ControlBranch, hint_image
from defect_core.generators.cadiff.losses import (
    contrastive_disentanglement_loss,
    localizing_masked_loss,
    token_masks,
)
from defect_core.generators.cadiff.self_adaptive_interaction import SelfAdaptiveInteractionModule

TOKENS, TEXT_WIDTH = 6, 32


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=16,
            norm_num_groups=8,
        ).eval()


@pytest.fixture(params=["attention", "addition", "both"])
def branch(request, unet):
    return ControlBranch(unet, request.param, seed=1).eval()


def _inputs():
    generator = torch.Generator().manual_seed(1)
    latents, text = (
        torch.randn((2, 4, 8, 8), generator=generator),
        torch.randn((2, TOKENS, TEXT_WIDTH), generator=generator),
    )
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:30, 20:50] = masks[1, :, 40:, :10] = 1
    return latents, torch.tensor([10, 700]), text, hint_image(masks, 8)


def _wake_up(branch):
    """Give the zero convolutions random weights, so that they have an effect as after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        branch.net.controlnet_cond_embedding.conv_out.weight.mul_(20)
        for convolution in (*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block):
            convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator) * 0.2)


# Self-adaptive interaction module (eq. 9, 10)


@pytest.mark.parametrize("channels", [32, 48, 128])
def test_fuse_doubles_the_channels_and_the_merge_restores_them(channels):
    module = SelfAdaptiveInteractionModule(channels)
    y, y_c = torch.randn(2, channels, 4, 4), torch.randn(2, channels, 4, 4)
    fused = module.fuse(y, y_c)
    assert fused.shape == (2, 2 * channels, 4, 4)
    assert torch.equal(fused[:, :channels], y)
    assert module(y, y_c).shape == y.shape
    assert not torch.allclose(module(y, y_c), y, atol=1e-3)


def test_a_new_branch_leaves_the_unet_output_bit_identical(unet, branch):
    latents, time, text, hint = _inputs()
    with torch.no_grad():
        assert torch.equal(branch.predict_noise(unet, latents, time, text, hint), unet(latents, time, text).sample)


def test_every_residual_has_an_interaction_module_of_its_width(unet):
    branch = ControlBranch(unet, "attention", seed=1)
    convolutions = [*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block]
    channels = [convolution.out_channels for convolution in convolutions]
    assert [module.merge.in_channels for module in branch.interactions] == [2 * count for count in channels]
    assert [module.merge.out_channels for module in branch.interactions] == channels


def test_a_trained_branch_depends_on_the_mask_and_scale_zero_disables_it(unet, branch):
    latents, time, text, hint = _inputs()
    _wake_up(branch)
    with torch.no_grad():
        plain = unet(latents, time, text).sample
        controlled = branch.predict_noise(unet, latents, time, text, hint)
        elsewhere = branch.predict_noise(unet, latents, time, text, hint.flip(-1))
        disabled = branch.predict_noise(unet, latents, time, text, hint, scale=0.0)
        whole = branch.predict_noise(unet, latents, time, text, hint, scale=1.0)
        faint = branch.predict_noise(unet, latents, time, text, hint, scale=1e-3)
    assert not torch.allclose(controlled, plain, atol=1e-3)
    # Attention mixes all positions, so with random weights it depends little on the position of the mask.
    assert (controlled - elsewhere).abs().max() > (0 if branch.interaction == "attention" else 1e-4)
    assert torch.equal(disabled, plain) and torch.equal(whole, controlled)
    assert 0 < (faint - plain).abs().max() < 0.1 * (controlled - plain).abs().max()


def test_zero_convolutions_have_gradients_in_the_first_step(unet, branch):
    latents, time, text, hint = _inputs()
    branch.predict_noise(unet, latents, time, text, hint).square().mean().backward()
    for convolution in (*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block):
        assert convolution.weight.grad.abs().max() > 0 and convolution.weight.grad.isfinite().all()


def test_only_the_seed_decides_the_weights_of_the_new_layers(unet):
    first, again, other = (ControlBranch(unet, "attention", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["interactions.0.query.weight"], other["interactions.0.query.weight"])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ControlBranch(unet, "attention", 3)
    assert torch.equal(torch.rand(1), expected)


# Losses (eq. 5 to 7)


def _masks():
    masks = torch.zeros(2, 2, 8, 8)
    masks[:, 0, 1:3, 1:6] = 1
    masks[:, 1, 5:, 4:] = 1
    return masks


def test_token_masks_are_disjoint_and_cover_every_position():
    disjoint = token_masks(_masks())
    assert torch.equal(disjoint.sum(1), torch.ones(2, 8, 8))
    assert torch.equal(disjoint[:, 1:], _masks())
    overlapping = _masks()
    overlapping[:, 1, 2:, :] = 1
    clipped = token_masks(overlapping)
    assert torch.equal(clipped.sum(1), torch.ones(2, 8, 8)) and clipped.min() == 0
    assert torch.equal(clipped[:, 1], overlapping[:, 0])


def _captured(*parts):
    return AttentionMaps([(str(number), part) for number, part in enumerate(parts)])


def test_localizing_masked_loss_is_zero_if_attention_equals_the_masks():
    masks = _masks()
    coarse = token_masks(torch.nn.functional.max_pool2d(masks, 2))
    for form in ("balanced", "token", "paper"):
        assert localizing_masked_loss(_captured(token_masks(masks), coarse), masks, form) == 0


def test_opposite_errors_cancel_only_in_the_paper_form():
    masks = _masks()
    wrong = token_masks(masks)
    wrong[:, 1] += 0.3
    wrong[:, 2] -= 0.3
    assert localizing_masked_loss(_captured(wrong), masks, "paper") == pytest.approx(0, abs=1e-12)
    assert localizing_masked_loss(_captured(wrong), masks, "token") == pytest.approx(2 / 3 * 0.09, rel=1e-4)


def test_balanced_form_gives_a_small_defect_the_weight_of_its_background():
    small = torch.zeros(1, 1, 8, 8)
    small[..., 3, 3] = 1
    nowhere = torch.zeros(1, 2, 8, 8)
    assert float(localizing_masked_loss(_captured(nowhere), small, "balanced")) == pytest.approx(0.5)
    uniform = torch.full((1, 2, 8, 8), 0.25)
    assert float(localizing_masked_loss(_captured(uniform), small, "balanced")) == pytest.approx(
        (0.75**2 + 0.25**2) / 2
    )


def test_localizing_masked_loss_is_the_sum_over_layers():
    masks, part = _masks(), torch.full((2, 3, 8, 8), 0.2)
    one = localizing_masked_loss(_captured(part), masks)
    assert one > 0 and localizing_masked_loss(_captured(part, part), masks) == pytest.approx(2 * float(one))


@pytest.mark.parametrize(("views", "concepts", "temperature"), [(2, 2, 0.1), (4, 3, 0.5), (5, 1, 0.07)])
def test_contrastive_loss_has_its_closed_form_for_equal_and_orthogonal_vectors(views, concepts, temperature):
    orthogonal = torch.eye(8)[:concepts].expand(views, -1, -1) * 3
    expected = (views - 1) * math.log((views - 1) * (1 + (concepts - 1) * math.exp(-1 / temperature)))
    assert float(contrastive_disentanglement_loss(orthogonal, temperature)) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )
    equal = torch.ones(views, concepts, 8)
    expected = (views - 1) * math.log((views - 1) * concepts)
    assert float(contrastive_disentanglement_loss(equal, temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_contrastive_loss_equals_its_definition_on_random_vectors():
    v, tau, total = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(0)), 0.3, 0.0

    def similarity(i, c, j, d):
        return math.exp(float(torch.cosine_similarity(v[i, c], v[j, d], dim=0)) / tau)

    for c in range(4):
        for i in range(3):
            below = sum(similarity(i, c, j, d) for d in range(4) for j in range(3) if j != i)
            total += sum(-math.log(similarity(i, c, j, c) / below) for j in range(3) if j != i)
    assert float(contrastive_disentanglement_loss(v, tau)) == pytest.approx(total / 12, rel=1e-5)


def test_contrastive_loss_needs_two_views():
    with pytest.raises(ValueError, match=r"got 1 view .* expected at least two"):
        contrastive_disentanglement_loss(torch.ones(1, 3, 4), 0.1)


# Attention re-weighting (eq. 11)


def _layer_output(unet, tokens, weights=None):
    """Return the output of the first cross-attention layer, [B, 64, C]."""
    latents, time, text, _ = _inputs()
    control, outputs = control_attention(unet), []
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    hook = layer.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        if weights is None:
            unet(latents, time, text)
        else:
            with control.reweight(tokens, weights):
                unet(latents, time, text)
    hook.remove()
    return outputs[0]


def test_strength_changes_the_attention_output_only_inside_the_mask(unet):
    tokens = torch.zeros(2, TOKENS, dtype=torch.bool)
    tokens[:, 3] = True
    masks = _masks()[:, :1]
    inside = masks[0].flatten().bool()
    plain = _layer_output(unet, tokens)
    for strength in (-2.0, 0.0, 0.5, 1.5):
        weights = masked_focus_weights(masks, torch.full((2,), strength), torch.ones(2, dtype=torch.bool))
        out = _layer_output(unet, tokens, weights)
        assert torch.equal(out[:, ~inside], plain[:, ~inside])
        assert (out[:, inside] != plain[:, inside]).any(-1).all()


def test_strength_one_or_an_inactive_sample_changes_nothing(unet):
    tokens = torch.ones(2, TOKENS, dtype=torch.bool)
    masks, plain, on = _masks()[:, :1], _layer_output(unet, tokens), torch.ones(2, dtype=torch.bool)
    one = masked_focus_weights(masks, torch.ones(2), on)
    unfocused = masked_focus_weights(masks, torch.tensor([0.5, -2.0]), ~on)
    first_only = masked_focus_weights(masks, torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    assert torch.equal(_layer_output(unet, tokens, one), plain)
    assert torch.equal(_layer_output(unet, tokens, unfocused), plain)
    mixed = _layer_output(unet, tokens, first_only)
    assert not torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])


def test_weights_are_one_outside_the_mask_and_the_strength_inside():
    masks = _masks()[:, :1]
    weights = masked_focus_weights(masks, torch.tensor([0.0, 1.5]), torch.ones(2, dtype=torch.bool))
    for side in (8, 4):
        inside = torch.nn.functional.max_pool2d(masks, 8 // side) > 0
        values = weights(side)
        assert (values[~inside] == 1).all()
        assert (values[0][inside[0]] == 0).all() and (values[1][inside[1]] == 1.5).all()
    everywhere = masked_focus_weights(masks, torch.tensor([0.0, 1.5]), torch.ones(2, dtype=torch.bool), is_masked=False)
    assert (everywhere(4)[0] == 0).all() and (everywhere(4)[1] == 1.5).all()


def test_focus_is_the_fraction_of_the_mask_above_the_mean_of_the_map():
    masks = torch.zeros(1, 4, 4)
    masks[0, 0] = 1
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, :3] = 1
    assert float(attention_focus(maps, masks)) == 0.75
    maps[0, 3] = 1
    assert float(attention_focus(maps, masks)) == 0.75
    maps[0, 0, 3] = 0.3  # above the least, below the mean of 7.3 / 16
    assert float(attention_focus(maps, masks)) == 0.75
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        focus = attention_focus(
            torch.rand((3, 4, 4), generator=generator), (torch.rand((3, 4, 4), generator=generator) > 0.5) * 1.0
        )
        assert ((focus >= 0) & (focus <= 1)).all()


def test_an_empty_mask_has_focus_zero_and_never_starts_reweighting():
    focus = attention_focus(torch.rand(2, 4, 4), torch.zeros(2, 4, 4))
    assert torch.equal(focus, torch.zeros(2))
    assert not DelayedFocusScheduler(2, 0.0).update(focus).any()


def _first_active_step(focus_values, threshold):
    scheduler = DelayedFocusScheduler(1, threshold)
    for step, focus in enumerate(focus_values):
        if scheduler.update(torch.tensor([focus])).item():
            return step
    return len(focus_values)


def test_a_higher_threshold_never_starts_reweighting_earlier():
    focus_values = np.random.default_rng(0).random(30).tolist()
    steps = [_first_active_step(focus_values, threshold) for threshold in np.linspace(0, 1, 21)]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 30
    assert _first_active_step([0.75, 0.7, 0.76], 0.75) == 2


def test_a_latched_scheduler_stays_active_and_another_decides_every_step():
    focus_values = [torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.1])]
    latched, free = DelayedFocusScheduler(2, 0.5), DelayedFocusScheduler(2, 0.5, is_latched=False)
    assert [latched.update(focus).tolist() for focus in focus_values] == [[True, False], [True, False]]
    assert [free.update(focus).tolist() for focus in focus_values] == [[True, False], [False, False]]


def test_strengths_from_seeds_are_uniform_in_the_range():
    strengths = np.array([sample_strength(seed, 0.5, 1.5) for seed in range(400)])
    assert sample_strength(7, 0.5, 1.5) == strengths[7] and strengths.min() >= 0.5 and strengths.max() <= 1.5
    assert abs(strengths.mean() - 1) < 0.05 and abs(strengths.std() - 12**-0.5) < 0.03


# Several defects in one image


def test_a_name_with_plus_is_two_defects_unless_a_fitted_one_has_that_name():
    assert split_defect_names("bent", ["bent"]) == ["bent"]
    assert split_defect_names("bent+cut", ["bent", "cut"]) == ["bent", "cut"]
    assert split_defect_names("bent+cut", ["bent", "bent+cut"]) == ["bent+cut"]


def _blobs(*boxes):
    mask = np.zeros((40, 50), bool)
    for top, left, tall, wide in boxes:
        mask[top : top + tall, left : left + wide] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        _blobs((2, 3, 5, 30)),
        _blobs((2, 3, 5, 6), (20, 20, 8, 8)),
        _blobs((0, 0, 4, 4), (10, 10, 9, 9), (30, 30, 6, 6), (2, 40, 3, 3)),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_split_masks_are_disjoint_complete_and_not_empty(mask, count):
    parts = split_mask(mask, count)
    assert len(parts) == count and all(part.any() for part in parts)
    assert (np.sum(parts, axis=0) == mask).all()


def test_components_stay_whole_and_a_single_component_is_cut_in_the_middle():
    first, second = split_mask(_blobs((2, 3, 5, 6), (20, 20, 8, 8)), 2)
    assert (first == _blobs((20, 20, 8, 8))).all() and (second == _blobs((2, 3, 5, 6))).all()
    parts = split_mask(_blobs((2, 3, 5, 30)), 2)
    assert {tuple(np.flatnonzero(part.any(0))[[0, -1]]) for part in parts} == {(3, 17), (18, 32)}


def test_a_single_pixel_is_not_split():
    parts = split_mask(_blobs((4, 4, 1, 1)), 2)
    assert parts[0].sum() == 1 and not parts[1].any()
