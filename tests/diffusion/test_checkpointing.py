"""Gradient checkpointing changes no gradient, also while attention is captured, re-weighted or divided into regions."""

from contextlib import ExitStack

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from defect_core.backbones import load_backbone
from defect_core.diffusion.attention import AttentionControl, control_attention
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing

TOKENS = torch.zeros(1, 2, 6)
TOKENS[:, 0, 2] = TOKENS[:, 1, 3] = 1


@pytest.fixture
def unet():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
        )


def _gradients(unet, control):
    generator = torch.Generator().manual_seed(1)
    latents, text, outside = (torch.randn(size, generator=generator) for size in ((1, 4, 8, 8), (1, 6, 12), (1, 6, 12)))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    with ExitStack() as stack:
        maps = stack.enter_context(control.capture(TOKENS))
        stack.enter_context(control.reweight(TOKENS[:, 0] > 0, 1 + mask))
        stack.enter_context(control.regions(outside, mask))
        predicted = unet(latents, torch.tensor(100), text).sample
    loss = predicted.square().mean() + sum((layer[:, 0] * layer[:, 1]).mean() for _, layer in maps.layers)
    count = len(maps.layers)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}
    unet.zero_grad()
    assert len(maps.layers) == count  # the recomputation adds no maps
    return float(loss.detach()), gradients


def test_gradients_with_controlled_attention_are_those_without_checkpointing(unet):
    control = control_attention(unet)
    plain_loss, plain = _gradients(unet, control)
    calls = []
    for module in unet.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    _gradients(unet, control)
    count = len(calls)
    calls.clear()
    enable_gradient_checkpointing(unet)
    loss, gradients = _gradients(unet, control)
    assert len(calls) > 1.3 * count  # blocks ran twice
    assert loss == plain_loss
    assert all(torch.allclose(gradients[name], value, atol=1e-7) for name, value in plain.items())


def test_without_the_controls_of_the_forward_pass_the_recomputation_differs(unet, monkeypatch):
    control = control_attention(unet)
    enable_gradient_checkpointing(unet)
    monkeypatch.setattr(AttentionControl, "replay", lambda control: ExitStack())
    with pytest.raises(CheckpointError):
        _gradients(unet, control)


def test_a_network_without_controlled_attention_can_be_checkpointed():
    unet = load_backbone("embedded").denoiser
    enable_gradient_checkpointing(unet)
    unet.disable_gradient_checkpointing()
