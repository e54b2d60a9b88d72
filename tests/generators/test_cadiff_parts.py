"""CADiff's formulas, each against its definition: interaction, masks, losses, intensity, composition."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from defect_core.diffusion.attention import AttentionMaps, control_attention
from defect_core.generators.cadiff.compose import named_defects, split_mask
from defect_core.generators.cadiff.control import ControlBranch, Interaction, hint_image
from defect_core.generators.cadiff.intensity import DelayedFocus, draw_strength, focus, spatial_weights
from defect_core.generators.cadiff.objective import contrast_loss, localising_loss, token_masks

T, D = 6, 32


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
            cross_attention_dim=D,
            attention_head_dim=16,
            norm_num_groups=8,
        ).eval()


@pytest.fixture(params=["attention", "addition", "both"])
def branch(request, unet):
    return ControlBranch(unet, request.param, seed=1).eval()


def _inputs():
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn((2, 4, 8, 8), generator=generator), torch.randn((2, T, D), generator=generator)
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:30, 20:50] = masks[1, :, 40:, :10] = 1
    return latents, torch.tensor([10, 700]), text, hint_image(masks, 8)


def _wake(branch):
    """Give the zero convolutions weights, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        branch.net.controlnet_cond_embedding.conv_out.weight.mul_(20)
        for join in (*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block):
            join.weight.copy_(torch.randn(join.weight.shape, generator=generator) * 0.2)


# interaction (§5.6.1, 9)


@pytest.mark.parametrize("channels", [32, 48, 128])
def test_fusing_gives_twice_the_channels_and_the_projection_brings_them_back(channels):
    module = Interaction(channels)
    y, y_c = torch.randn(2, channels, 4, 4), torch.randn(2, channels, 4, 4)
    fused = module.fuse(y, y_c)
    assert fused.shape == (2, 2 * channels, 4, 4)
    assert torch.equal(fused[:, :channels], y)
    assert module(y, y_c).shape == y.shape
    assert not torch.allclose(module(y, y_c), y, atol=1e-3)


def test_a_new_branch_leaves_the_unet_as_it_is_bit_for_bit(unet, branch):
    latents, time, text, hint = _inputs()
    with torch.no_grad():
        assert torch.equal(branch.predict(unet, latents, time, text, hint), unet(latents, time, text).sample)


def test_every_join_of_the_branch_has_an_interaction_of_its_width(unet):
    branch = ControlBranch(unet, "attention", seed=1)
    joins = [*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block]
    assert [module.merge.in_channels for module in branch.interactions] == [2 * join.out_channels for join in joins]
    assert [module.merge.out_channels for module in branch.interactions] == [join.out_channels for join in joins]


def test_a_branch_that_woke_up_obeys_the_mask_and_scale_zero_silences_it(unet, branch):
    latents, time, text, hint = _inputs()
    _wake(branch)
    with torch.no_grad():
        plain = unet(latents, time, text).sample
        controlled = branch.predict(unet, latents, time, text, hint)
        elsewhere = branch.predict(unet, latents, time, text, hint.flip(-1))
        silent = branch.predict(unet, latents, time, text, hint, scale=0.0)
        whole = branch.predict(unet, latents, time, text, hint, scale=1.0)
        faint = branch.predict(unet, latents, time, text, hint, scale=1e-3)
    assert not torch.allclose(controlled, plain, atol=1e-3)
    # attention alone mixes all places: with random weights it hardly says where the mask lies
    assert (controlled - elsewhere).abs().max() > (0 if branch.joining == "attention" else 1e-4)
    assert torch.equal(silent, plain) and torch.equal(whole, controlled)
    assert 0 < (faint - plain).abs().max() < 0.1 * (controlled - plain).abs().max()


def test_gradients_reach_the_zero_convolutions_in_the_first_step(unet, branch):
    latents, time, text, hint = _inputs()
    branch.predict(unet, latents, time, text, hint).square().mean().backward()
    for join in (*branch.net.controlnet_down_blocks, branch.net.controlnet_mid_block):
        assert join.weight.grad.abs().max() > 0 and join.weight.grad.isfinite().all()


def test_the_seed_alone_decides_the_new_layers(unet):
    first, again, other = (ControlBranch(unet, "attention", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["interactions.0.query.weight"], other["interactions.0.query.weight"])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ControlBranch(unet, "attention", 3)
    assert torch.equal(torch.rand(1), expected)


# masks and losses (§5.6.2 - 4)


def _masks():
    masks = torch.zeros(2, 2, 8, 8)
    masks[:, 0, 1:3, 1:6] = 1
    masks[:, 1, 5:, 4:] = 1
    return masks


def test_context_and_defect_masks_share_every_place_among_them():
    apart = token_masks(_masks())
    assert torch.equal(apart.sum(1), torch.ones(2, 8, 8))
    assert torch.equal(apart[:, 1:], _masks())
    overlapping = _masks()
    overlapping[:, 1, 2:, :] = 1
    shared = token_masks(overlapping)
    assert torch.equal(shared.sum(1), torch.ones(2, 8, 8)) and shared.min() == 0
    assert torch.equal(shared[:, 1], overlapping[:, 0])


def _captured(*parts):
    return AttentionMaps([(str(number), part) for number, part in enumerate(parts)])


def test_attention_that_equals_the_masks_costs_nothing():
    masks = _masks()
    coarse = token_masks(torch.nn.functional.max_pool2d(masks, 2))
    for form in ("balanced", "token", "paper"):
        assert localising_loss(_captured(token_masks(masks), coarse), masks, form) == 0


def test_opposite_errors_cancel_in_the_papers_form_only():
    masks = _masks()
    wrong = token_masks(masks)
    wrong[:, 1] += 0.3
    wrong[:, 2] -= 0.3
    assert localising_loss(_captured(wrong), masks, "paper") == pytest.approx(0, abs=1e-12)
    assert localising_loss(_captured(wrong), masks, "token") == pytest.approx(2 / 3 * 0.09, rel=1e-4)


def test_the_balanced_form_weighs_a_small_defect_like_its_surroundings():
    small = torch.zeros(1, 1, 8, 8)
    small[..., 3, 3] = 1
    nowhere = torch.zeros(1, 2, 8, 8)
    assert float(localising_loss(_captured(nowhere), small, "balanced")) == pytest.approx(0.5)
    uniform = torch.full((1, 2, 8, 8), 0.25)
    assert float(localising_loss(_captured(uniform), small, "balanced")) == pytest.approx((0.75**2 + 0.25**2) / 2)


def test_the_localising_loss_is_the_sum_over_layers():
    masks, part = _masks(), torch.full((2, 3, 8, 8), 0.2)
    one = localising_loss(_captured(part), masks)
    assert one > 0 and localising_loss(_captured(part, part), masks) == pytest.approx(2 * float(one))


@pytest.mark.parametrize(("views", "concepts", "temperature"), [(2, 2, 0.1), (4, 3, 0.5), (5, 1, 0.07)])
def test_the_contrast_has_its_closed_forms(views, concepts, temperature):
    apart = torch.eye(8)[:concepts].expand(views, -1, -1) * 3
    expected = (views - 1) * math.log((views - 1) * (1 + (concepts - 1) * math.exp(-1 / temperature)))
    assert float(contrast_loss(apart, temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    same = torch.ones(views, concepts, 8)
    expected = (views - 1) * math.log((views - 1) * concepts)
    assert float(contrast_loss(same, temperature)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_contrast_equals_its_definition_on_random_vectors():
    v, tau, total = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(0)), 0.3, 0.0

    def near(i, c, j, d):
        return math.exp(float(torch.cosine_similarity(v[i, c], v[j, d], dim=0)) / tau)

    for c in range(4):
        for i in range(3):
            below = sum(near(i, c, j, d) for d in range(4) for j in range(3) if j != i)
            total += sum(-math.log(near(i, c, j, c) / below) for j in range(3) if j != i)
    assert float(contrast_loss(v, tau)) == pytest.approx(total / 12, rel=1e-5)


def test_the_contrast_needs_two_views():
    with pytest.raises(ValueError, match="at least two views, got 1"):
        contrast_loss(torch.ones(1, 3, 4), 0.1)


# intensity (§5.6.5, 6)


def _layer_run(unet, tokens, weights=None):
    """Output of the first cross-attention layer, [B, 64, C], and its probabilities for every token, [B, T, 8, 8]."""
    latents, time, text, _ = _inputs()
    control, seen = control_attention(unet), []
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    hook = layer.register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        if weights is None:
            unet(latents, time, text)
        else:
            with control.reweight(tokens, weights):
                unet(latents, time, text)
    hook.remove()
    return seen[0]


def test_outside_the_mask_no_strength_changes_the_attention_and_inside_each_does(unet):
    tokens = torch.zeros(2, T, dtype=torch.bool)
    tokens[:, 3] = True
    masks = _masks()[:, :1]
    inside = masks[0].flatten().bool()
    plain = _layer_run(unet, tokens)
    for strength in (-2.0, 0.0, 0.5, 1.5):
        weights = spatial_weights(masks, torch.full((2,), strength), torch.ones(2, dtype=torch.bool))
        out = _layer_run(unet, tokens, weights)
        assert torch.equal(out[:, ~inside], plain[:, ~inside])
        assert (out[:, inside] != plain[:, inside]).any(-1).all()


def test_strength_one_or_no_focus_changes_nothing(unet):
    tokens = torch.ones(2, T, dtype=torch.bool)
    masks, plain, on = _masks()[:, :1], _layer_run(unet, tokens), torch.ones(2, dtype=torch.bool)
    one = spatial_weights(masks, torch.ones(2), on)
    unfocused = spatial_weights(masks, torch.tensor([0.5, -2.0]), ~on)
    first_only = spatial_weights(masks, torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    assert torch.equal(_layer_run(unet, tokens, one), plain)
    assert torch.equal(_layer_run(unet, tokens, unfocused), plain)
    mixed = _layer_run(unet, tokens, first_only)
    assert not torch.equal(mixed[0], plain[0]) and torch.equal(mixed[1], plain[1])


def test_weights_are_one_outside_the_mask_and_the_strength_inside_at_every_side():
    masks = _masks()[:, :1]
    weights = spatial_weights(masks, torch.tensor([0.0, 1.5]), torch.ones(2, dtype=torch.bool))
    for side in (8, 4):
        inside = torch.nn.functional.max_pool2d(masks, 8 // side) > 0
        found = weights(side)
        assert (found[~inside] == 1).all()
        assert (found[0][inside[0]] == 0).all() and (found[1][inside[1]] == 1.5).all()
    everywhere = spatial_weights(masks, torch.tensor([0.0, 1.5]), torch.ones(2, dtype=torch.bool), masked=False)
    assert (everywhere(4)[0] == 0).all() and (everywhere(4)[1] == 1.5).all()


def test_focus_is_the_share_of_the_mask_above_the_maps_mean():
    masks = torch.zeros(1, 4, 4)
    masks[0, 0] = 1
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, :3] = 1
    assert float(focus(maps, masks)) == 0.75
    maps[0, 3] = 1
    assert float(focus(maps, masks)) == 0.75
    maps[0, 0, 3] = 0.3  # above the least, below the mean of 7.3 / 16
    assert float(focus(maps, masks)) == 0.75
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        share = focus(
            torch.rand((3, 4, 4), generator=generator), (torch.rand((3, 4, 4), generator=generator) > 0.5) * 1.0
        )
        assert ((share >= 0) & (share <= 1)).all()


def test_an_empty_mask_has_no_focus_and_never_triggers():
    share = focus(torch.rand(2, 4, 4), torch.zeros(2, 4, 4))
    assert torch.equal(share, torch.zeros(2))
    assert not DelayedFocus(2, 0.0).update(share).any()


def _trigger_step(shares, threshold):
    scheduler = DelayedFocus(1, threshold)
    for step, share in enumerate(shares):
        if scheduler.update(torch.tensor([share])).item():
            return step
    return len(shares)


def test_a_higher_threshold_never_triggers_earlier():
    shares = np.random.default_rng(0).random(30).tolist()
    steps = [_trigger_step(shares, threshold) for threshold in np.linspace(0, 1, 21)]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 30
    assert _trigger_step([0.75, 0.7, 0.76], 0.75) == 2


def test_a_latched_focus_stays_and_an_unlatched_one_is_decided_anew():
    shares = [torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.1])]
    latched, free = DelayedFocus(2, 0.5), DelayedFocus(2, 0.5, latched=False)
    assert [latched.update(share).tolist() for share in shares] == [[True, False], [True, False]]
    assert [free.update(share).tolist() for share in shares] == [[True, False], [False, False]]


def test_strengths_are_drawn_evenly_from_the_range_by_the_seed():
    drawn = np.array([draw_strength(seed, 0.5, 1.5) for seed in range(400)])
    assert draw_strength(7, 0.5, 1.5) == drawn[7] and drawn.min() >= 0.5 and drawn.max() <= 1.5
    assert abs(drawn.mean() - 1) < 0.05 and abs(drawn.std() - 12**-0.5) < 0.03


# composition


def test_a_name_with_a_plus_is_two_defects_unless_one_is_called_so():
    assert named_defects("bent", ["bent"]) == ["bent"]
    assert named_defects("bent+cut", ["bent", "cut"]) == ["bent", "cut"]
    assert named_defects("bent+cut", ["bent", "bent+cut"]) == ["bent+cut"]


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
def test_a_split_mask_is_disjoint_complete_and_gives_every_defect_a_place(mask, count):
    parts = split_mask(mask, count)
    assert len(parts) == count and all(part.any() for part in parts)
    assert (np.sum(parts, axis=0) == mask).all()


def test_connected_parts_stay_whole_and_one_part_is_cut_through_its_middle():
    first, second = split_mask(_blobs((2, 3, 5, 6), (20, 20, 8, 8)), 2)
    assert (first == _blobs((20, 20, 8, 8))).all() and (second == _blobs((2, 3, 5, 6))).all()
    halves = split_mask(_blobs((2, 3, 5, 30)), 2)
    assert {tuple(np.flatnonzero(half.any(0))[[0, -1]]) for half in halves} == {(3, 17), (18, 32)}


def test_a_single_pixel_cannot_be_split_and_does_not_hang():
    parts = split_mask(_blobs((4, 4, 1, 1)), 2)
    assert parts[0].sum() == 1 and not parts[1].any()
