"""Region-masked cross-attention on a tiny U-Net of diffusers."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from defect_core.diffusion.attention import control_regions, regions, resize_mask


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
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=16,
            norm_num_groups=8,
        ).eval()


def _inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((batch, 4, 8, 8), generator=generator)
    texts = torch.randn((3, batch, 6, 32), generator=generator)
    return latents, torch.tensor(10), *texts


def _first_layer(unet):
    return next(module for name, module in unet.named_modules() if name.endswith("attn2"))


def _layer_output(unet, latents, time, inside):
    seen = []
    hook = _first_layer(unet).register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        unet(latents, time, inside)
    hook.remove()
    return seen[0]


def test_nothing_asked_equals_diffusers_own_attention(unet):
    latents, time, text, *_ = _inputs()
    with torch.no_grad():
        before = unet(latents, time, text).sample
        control_regions(unet)
        after = unet(latents, time, text).sample
    assert torch.allclose(before, after, atol=1e-5)


def test_full_mask_equals_ordinary_attention_with_the_inside_text(unet):
    latents, time, inside, outside, _ = _inputs()
    control = control_regions(unet)
    with torch.no_grad():
        ordinary = unet(latents, time, inside).sample
        with regions(control, outside, torch.ones(2, 1, 8, 8)):
            masked = unet(latents, time, inside).sample
        with regions(control, outside, torch.zeros(2, 1, 8, 8)):
            other = unet(latents, time, inside).sample
        plain = unet(latents, time, outside).sample
    assert torch.allclose(ordinary, masked, atol=1e-5)
    assert torch.allclose(plain, other, atol=1e-5)
    assert not torch.allclose(masked, other, atol=1e-3)


def test_each_text_reaches_only_its_own_region(unet):
    latents, time, inside, outside, third = _inputs()
    control = control_regions(unet)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    flat = resize_mask(mask, 64)[0].bool()
    with regions(control, outside, mask):
        base = _layer_output(unet, latents, time, inside)
        new_inside = _layer_output(unet, latents, time, third)
    with regions(control, third, mask):
        new_outside = _layer_output(unet, latents, time, inside)
    assert torch.equal(base[:, ~flat], new_inside[:, ~flat])
    assert not torch.allclose(base[:, flat], new_inside[:, flat])
    assert torch.equal(base[:, flat], new_outside[:, flat])
    assert not torch.allclose(base[:, ~flat], new_outside[:, ~flat])


def test_maps_are_kept_only_when_asked_and_sum_to_one_over_all_tokens(unet):
    latents, time, inside, outside, _ = _inputs()
    control = control_regions(unet)
    mask = torch.ones(2, 1, 8, 8)
    with torch.no_grad(), regions(control, outside, mask) as quiet:
        unet(latents, time, inside)
    assert quiet.maps == []
    with torch.no_grad(), regions(control, outside, mask, torch.ones(2, 6, dtype=torch.bool)) as loud:
        unet(latents, time, inside)
    assert loud.maps
    for attention in loud.maps:
        assert torch.allclose(attention, torch.ones_like(attention), atol=1e-5)


def test_region_control_ends_with_its_block(unet):
    latents, time, inside, outside, _ = _inputs()
    control = control_regions(unet)
    with torch.no_grad():
        before = unet(latents, time, inside).sample
        with pytest.raises(RuntimeError, match="stop"), regions(control, outside, torch.zeros(2, 1, 8, 8)):
            raise RuntimeError("stop")
        after = unet(latents, time, inside).sample
    assert torch.equal(before, after)


def test_a_network_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="attn2"):
        control_regions(torch.nn.Linear(2, 2))
