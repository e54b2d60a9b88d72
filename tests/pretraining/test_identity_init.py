"""The initial denoiser returns its input, and training can change that."""

import pytest
import torch

from defect_core.pretraining.architecture import build_denoiser
from defect_core.pretraining.identity_init import initialise_as_identity


def test_the_prediction_is_the_input_for_all_timesteps_and_prompts() -> None:
    denoiser = build_denoiser(16).eval()
    initialise_as_identity(denoiser)
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 32, 128, generator=generator)
    with torch.inference_mode():
        for timestep in (0, 999):
            assert (denoiser(latents, timestep, states).sample - latents).square().mean() < 1e-4
        assert (denoiser(latents, 500, -states).sample - latents).square().mean() < 1e-4


def test_every_layer_gets_a_gradient_after_one_step() -> None:
    denoiser = build_denoiser(16)
    initialise_as_identity(denoiser)
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 32, 128, generator=generator)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        denoiser(latents, 300, states).sample.square().mean().backward()
        optimizer.step()
    gradients = {name: parameter.grad.abs().max() for name, parameter in denoiser.named_parameters()}
    for name in ("conv_in.weight", "mid_block.resnets.0.conv1.weight", "up_blocks.2.resnets.1.conv2.weight"):
        assert gradients[name] > 0


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="60 latent channels do not fit into 8 groups of 16"):
        initialise_as_identity(build_denoiser(60))
