"""The denoiser's start: it returns its input, and can be trained away from that."""

import pytest
import torch

from defect_core.backbones.architecture import build_denoiser
from defect_core.pretraining.identity_start import start_from_identity


def test_prediction_is_the_input_at_any_time_and_text() -> None:
    denoiser = build_denoiser(16).eval()
    start_from_identity(denoiser)
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 32, 128, generator=generator)
    with torch.inference_mode():
        for time in (0, 999):
            assert (denoiser(latents, time, states).sample - latents).square().mean() < 1e-4
        assert (denoiser(latents, 500, -states).sample - latents).square().mean() < 1e-4


def test_every_part_gets_a_gradient_after_one_step() -> None:
    denoiser = build_denoiser(16)
    start_from_identity(denoiser)
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 32, 128, generator=generator)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        denoiser(latents, 300, states).sample.square().mean().backward()
        optimizer.step()
    gradients = {name: parameter.grad.abs().max() for name, parameter in denoiser.named_parameters()}
    for part in ("conv_in.weight", "mid_block.resnets.0.conv1.weight", "up_blocks.2.resnets.1.conv2.weight"):
        assert gradients[part] > 0


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="60 latent channels do not fit into 8 groups of 16"):
        start_from_identity(build_denoiser(60))
