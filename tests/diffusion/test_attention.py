"""Control of the cross-attention of a tiny diffusers U-Net: maps, re-weighting, text by region."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from defect_core.diffusion.attention import attention_sides, check_text_width, control_attention, resize_map
from defect_core.errors import InputError

T = 6


@pytest.fixture
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=16,
            norm_num_groups=8,
        ).eval()


def _inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((batch, 4, 8, 8), generator=generator)
    texts = torch.randn((3, batch, T, 32), generator=generator)
    return latents, torch.tensor(10), *texts


def _layer(unet):
    return next(module for name, module in unet.named_modules() if name.endswith("attn2"))


def _layer_output(unet, latents, time, inside):
    outputs = []
    hook = _layer(unet).register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        unet(latents, time, inside)
    hook.remove()
    return outputs[0]


def _cross_attention(layer, hidden, text, change_logits=None, change_probabilities=None):
    """Return the output and the probabilities of cross-attention, computed by its formula with optional factors."""
    batch, positions, _ = hidden.shape
    query, key, value = layer.to_q(hidden), layer.to_k(text), layer.to_v(text)
    query, key, value = (x.view(batch, -1, layer.heads, x.shape[-1] // layer.heads) for x in (query, key, value))
    logits = torch.einsum("bphd,bthd->bhpt", query, key) / query.shape[-1] ** 0.5
    if change_logits is not None:
        logits = logits * change_logits
    probabilities = logits.softmax(-1)
    if change_probabilities is not None:
        probabilities = probabilities * change_probabilities
    out = torch.einsum("bhpt,bthd->bphd", probabilities, value).reshape(batch, positions, -1)
    return layer.to_out[0](out), probabilities


def _rectangle_mask(batch=2):
    mask = torch.zeros(batch, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    return mask


def test_without_requests_the_output_is_bit_identical_to_diffusers(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad():
        before = unet(latents, time, text).sample
        control_attention(unet)
        after = unet(latents, time, text).sample
    assert torch.equal(before, after)


def test_without_requests_the_original_processor_runs(unet):
    latents, time, text, *_ = _inputs()
    calls = []

    class Plain:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            calls.append(1)
            return hidden_states

    _layer(unet).set_processor(Plain())
    control_attention(unet)
    with torch.no_grad():
        unet(latents, time, text)
    assert calls == [1]


def test_each_unet_has_one_control(unet):
    assert control_attention(unet) is control_attention(unet)


# capture


def test_token_softmax_maps_sum_to_one_over_all_tokens(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad(), control_attention(unet).capture(torch.eye(T).expand(2, -1, -1)) as maps:
        unet(latents, time, text)
    assert {layer.shape[-1] for _, layer in maps.layers} == {8, 4}
    for _, layer in maps.layers:
        assert torch.allclose(layer.sum(1), torch.ones_like(layer[:, 0]), atol=1e-5)


def test_pixel_softmax_maps_sum_to_one_over_all_positions(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad(), control_attention(unet).capture(torch.eye(T).expand(2, -1, -1), "pixels") as maps:
        unet(latents, time, text)
    for _, layer in maps.layers:
        assert torch.allclose(layer.sum((2, 3)), torch.ones(2, T), atol=1e-5)


def test_map_is_the_mean_over_heads_and_over_the_group_tokens(unet):
    _, _, text, *_ = _inputs()
    hidden = torch.randn((2, 64, 32), generator=torch.Generator().manual_seed(2))
    groups = torch.tensor([[[0, 1, 1, 0, 0, 0], [0, 0, 0, 3, 1, 0]]]).expand(2, -1, -1)
    with torch.no_grad(), control_attention(unet).capture(groups) as maps:
        _layer(unet)(hidden, text)
        _, probabilities = _cross_attention(_layer(unet), hidden, text)
    expected = probabilities.mean(1)
    pair, weighted = expected[..., 1:3].mean(-1), 0.75 * expected[..., 3] + 0.25 * expected[..., 4]
    assert torch.allclose(maps.layers[0][1].flatten(2), torch.stack([pair, weighted], 1), atol=1e-6)


def test_capture_changes_no_bit_of_the_output(unet):
    latents, time, text, *_ = _inputs()
    control = control_attention(unet)
    with torch.no_grad():
        before = unet(latents, time, text).sample
        with control.capture(torch.eye(T).expand(2, -1, -1)):
            after = unet(latents, time, text).sample
    assert torch.equal(before, after)


def test_only_layers_with_the_requested_sides_are_captured(unet):
    latents, time, text, *_ = _inputs()
    control, groups = control_attention(unet), torch.eye(T).expand(2, -1, -1)
    with torch.no_grad(), control.capture(groups, sides={4}) as coarse, control.capture(groups, sides={8}) as fine:
        unet(latents, time, text)
    assert {layer.shape[-1] for _, layer in coarse.layers} == {4}
    assert {layer.shape[-1] for _, layer in fine.layers} == {8}
    assert all(name.startswith(("down_blocks.0", "up_blocks.1")) for name, _ in fine.layers)
    with control.capture(groups, sides={5}) as none, torch.no_grad():
        unet(latents, time, text)
    with pytest.raises(ValueError, match="no attention was captured"):
        none.mean(4)


def test_mean_over_layers_has_the_requested_side(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad(), control_attention(unet).capture(torch.eye(T).expand(2, -1, -1)) as maps:
        unet(latents, time, text)
    assert maps.mean(4).shape == (2, T, 4, 4)
    assert torch.allclose(maps.mean(8).sum(1), torch.ones(2, 8, 8), atol=1e-5)


@pytest.mark.parametrize("softmax", ["tokens", "pixels"])
def test_gradients_flow_through_the_maps_to_the_text(unet, softmax):
    latents, time, text, *_ = _inputs()
    text.requires_grad_(True)
    groups = torch.zeros(2, 1, T)
    groups[:, :, 2] = 1
    with control_attention(unet).capture(groups, softmax) as maps:
        unet(latents, time, text)
    maps.mean(8)[..., :4].sum().backward()
    assert text.grad is not None and text.grad[:, 2].abs().max() > 0


def test_attention_sides_equal_those_of_the_layers(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad(), control_attention(unet).capture(torch.ones(2, 1, T)) as maps:
        unet(latents, time, text)
    assert attention_sides(unet, 8) == {layer.shape[-1] for _, layer in maps.layers} == {8, 4}


# re-weighting


def test_reweighting_by_ones_changes_no_bit(unet):
    latents, time, text, *_ = _inputs()
    control, tokens = control_attention(unet), torch.ones(2, T, dtype=torch.bool)
    with torch.no_grad():
        before = unet(latents, time, text).sample
        for where in ("probabilities", "logits"):
            with control.reweight(tokens, torch.ones(2, 1, 8, 8), where):
                assert torch.equal(before, unet(latents, time, text).sample)


@pytest.mark.parametrize("where", ["probabilities", "logits"])
def test_reweighting_equals_its_formula(unet, where):
    _, _, text, *_ = _inputs()
    hidden = torch.randn((2, 64, 32), generator=torch.Generator().manual_seed(2))
    weights = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(3)) * 3
    tokens = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    factor = torch.where(tokens[:, None, None, :], weights.flatten(2)[..., None], 1.0)
    change = {"logits": (factor, None), "probabilities": (None, factor)}[where]
    with torch.no_grad():
        expected, _ = _cross_attention(_layer(unet), hidden, text, *change)
        with control_attention(unet).reweight(tokens, weights, where):
            output = _layer(unet)(hidden, text)
    assert torch.allclose(output, expected, atol=1e-5)


def test_positions_of_weight_one_do_not_change(unet):
    latents, time, text, *_ = _inputs()
    control, mask = control_attention(unet), _rectangle_mask()
    before = _layer_output(unet, latents, time, text)
    with control.reweight(torch.ones(2, T, dtype=torch.bool), 1 + 2 * mask):
        after = _layer_output(unet, latents, time, text)
    inside = mask[0].flatten().bool()
    assert torch.equal(before[:, ~inside], after[:, ~inside])
    assert (before[:, inside] != after[:, inside]).any(-1).all()


def test_weight_function_is_called_with_the_side_of_each_layer(unet):
    latents, time, text, *_ = _inputs()
    sides = []

    def weights(side):
        sides.append(side)
        return torch.ones(2, 1, side, side)

    with torch.no_grad(), control_attention(unet).reweight(torch.ones(2, T, dtype=torch.bool), weights):
        unet(latents, time, text)
    assert set(sides) == {8, 4}


def test_captured_attention_is_that_before_reweighting(unet):
    _, _, text, *_ = _inputs()
    hidden = torch.randn((2, 64, 32), generator=torch.Generator().manual_seed(2))
    control, groups = control_attention(unet), torch.eye(T).expand(2, -1, -1)
    with torch.no_grad(), control.capture(groups) as plain:
        _layer(unet)(hidden, text)
    tokens = torch.ones(2, T, dtype=torch.bool)
    with torch.no_grad(), control.reweight(tokens, 3 * torch.ones(2, 1, 8, 8)), control.capture(groups) as both:
        _layer(unet)(hidden, text)
    assert torch.equal(plain.layers[0][1], both.layers[0][1])


# text by region


def test_full_mask_equals_ordinary_attention_with_the_inside_text(unet):
    latents, time, inside, outside, _ = _inputs()
    control = control_attention(unet)
    with torch.no_grad():
        ordinary = unet(latents, time, inside).sample
        with control.regions(outside, torch.ones(2, 1, 8, 8)):
            masked = unet(latents, time, inside).sample
        with control.regions(outside, torch.zeros(2, 1, 8, 8)):
            other = unet(latents, time, inside).sample
        plain = unet(latents, time, outside).sample
    assert torch.allclose(ordinary, masked, atol=1e-5)
    assert torch.allclose(plain, other, atol=1e-5)
    assert not torch.allclose(masked, other, atol=1e-3)


def test_one_outside_text_can_serve_the_whole_batch(unet):
    latents, time, inside, outside, _ = _inputs()
    control, mask = control_attention(unet), _rectangle_mask()
    with torch.no_grad(), control.regions(outside[:1].expand_as(outside), mask):
        repeated = unet(latents, time, inside).sample
    with torch.no_grad(), control.regions(outside[:1], mask):
        assert torch.allclose(unet(latents, time, inside).sample, repeated, atol=1e-5)


def test_each_text_changes_only_its_own_region(unet):
    latents, time, inside, outside, third = _inputs()
    control, mask = control_attention(unet), _rectangle_mask()
    flat = mask[0].flatten().bool()
    with control.regions(outside, mask):
        base = _layer_output(unet, latents, time, inside)
        new_inside = _layer_output(unet, latents, time, third)
    with control.regions(third, mask):
        new_outside = _layer_output(unet, latents, time, inside)
    assert torch.equal(base[:, ~flat], new_inside[:, ~flat])
    assert not torch.allclose(base[:, flat], new_inside[:, flat])
    assert torch.equal(base[:, flat], new_outside[:, flat])
    assert not torch.allclose(base[:, ~flat], new_outside[:, ~flat])


def test_captured_maps_in_regions_are_those_of_the_inside_text(unet):
    latents, time, inside, outside, _ = _inputs()
    control, groups = control_attention(unet), torch.eye(T).expand(2, -1, -1)
    with torch.no_grad(), control.capture(groups) as plain:
        unet(latents, time, inside)
    with torch.no_grad(), control.regions(outside, _rectangle_mask()), control.capture(groups) as maps:
        unet(latents, time, inside)
    assert torch.allclose(plain.layers[0][1], maps.layers[0][1], atol=1e-6)


def test_all_controls_end_with_their_context(unet):
    latents, time, inside, outside, _ = _inputs()
    control = control_attention(unet)
    with torch.no_grad():
        before = unet(latents, time, inside).sample
        tokens = torch.ones(2, T, dtype=torch.bool)
        with (
            pytest.raises(RuntimeError, match="stop"),
            control.regions(outside, torch.zeros(2, 1, 8, 8)),
            control.reweight(tokens, torch.zeros(2, 1, 8, 8)),
            control.capture(torch.ones(2, 1, T)) as maps,
        ):
            raise RuntimeError("stop")
        after = unet(latents, time, inside).sample
    assert torch.equal(before, after) and maps.layers == []


def test_map_with_the_requested_side_is_returned_unchanged():
    maps = torch.rand(1, 1, 4, 4)
    assert resize_map(maps, 4) is maps
    assert torch.allclose(resize_map(torch.ones(1, 1, 4, 4), 7), torch.ones(1, 1, 7, 7))


# bad input


def test_network_without_cross_attention_is_rejected():
    with pytest.raises(InputError, match=r"no cross-attention layers \(attn2\); expected"):
        control_attention(torch.nn.Linear(2, 2))


def test_text_of_another_width_is_rejected(unet):
    check_text_width(unet, 32)
    with pytest.raises(InputError, match="reads text of width 32, its text encoder gives 48; expected the same"):
        check_text_width(unet, 48)
