"""Noise schedules and single steps: identities that hold for any network, and diffusers as reference."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from torch import Tensor

from defect_core.diffusion.schedule import add_noise, ddim_step, make_trajectory, pred_original_sample

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
BETAS = (1 - ALPHAS / torch.cat([torch.ones(1, dtype=torch.float64), ALPHAS[:-1]])).numpy()
ONE = torch.ones((), dtype=torch.float64)


def _random(count: int, *shape: int) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_trajectory_runs_from_clean_to_the_last_timestep() -> None:
    trajectory = make_trajectory(ALPHAS, 50)
    assert trajectory.steps == 50
    assert trajectory.timesteps[0] == 0
    assert trajectory.timesteps[-1] == 999
    assert trajectory.alphas_cumprod[0] == 1
    assert (trajectory.alphas_cumprod.diff() < 0).all()
    assert torch.equal(trajectory.alphas_cumprod[1:], ALPHAS[trajectory.timesteps[1:]])


@pytest.mark.parametrize("steps", [0, 1000])
def test_trajectory_rejects_step_counts_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 999, got {steps}"):
        make_trajectory(ALPHAS, steps)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timestep", [20, 500, 999])
def test_ddim_step_equals_the_ddim_scheduler_of_diffusers(eta: float, timestep: int) -> None:
    scheduler = DDIMScheduler(trained_betas=BETAS.astype(np.float64), clip_sample=False)
    scheduler.set_timesteps(50)
    latents, noise, fresh = _random(3, 1, 4, 8, 8)
    expected = scheduler.step(noise, timestep, latents, eta=eta, variance_noise=fresh, return_dict=False)
    moved = ddim_step(latents, noise, ALPHAS[timestep], ALPHAS[timestep - 20], eta, fresh)
    torch.testing.assert_close(moved, expected[0], rtol=1e-5, atol=1e-5)
    clean = pred_original_sample(latents, noise, ALPHAS[timestep])
    torch.testing.assert_close(clean, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timestep", [20, 500, 999])
def test_rising_ddim_step_equals_the_inverse_scheduler_of_diffusers(timestep: int) -> None:
    scheduler = DDIMInverseScheduler(trained_betas=BETAS.astype(np.float64), clip_sample=False)
    scheduler.set_timesteps(50)
    latents, noise = _random(2, 1, 4, 8, 8)
    expected, *_ = scheduler.step(noise, timestep, latents, return_dict=False)
    moved = ddim_step(latents, noise, ALPHAS[timestep - 20], ALPHAS[timestep])
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


def test_true_noise_leads_from_any_level_to_any_other() -> None:
    clean, noise = _random(2, 1, 4, 8, 8)
    low, high = ALPHAS[200], ALPHAS[800]
    at_low, at_high = add_noise(clean, noise, low[None]), add_noise(clean, noise, high[None])
    assert torch.allclose(ddim_step(at_high, noise, high, low), at_low, atol=1e-12)
    assert torch.allclose(ddim_step(at_low, noise, low, high), at_high, atol=1e-12)
    assert torch.allclose(ddim_step(at_high, noise, high, ONE), clean, atol=1e-12)


def test_predicted_clean_latents_undo_added_noise() -> None:
    clean, noise = _random(2, 3, 4, 8, 8)
    levels = ALPHAS[[5, 300, 900]]
    noised = add_noise(clean, noise, levels)
    assert torch.allclose(pred_original_sample(noised, noise, levels), clean, atol=1e-12)
    assert torch.allclose(pred_original_sample(noised[1], noise[1], levels[1]), clean[1], atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_step_keeps_the_marginal_distribution(eta: float) -> None:
    """From exactly noised data and the true noise, the result is a sample of q(z_to | z_0)."""
    noise, fresh = _random(2, 200_000)
    high, low, clean = ALPHAS[800], ALPHAS[300], 1.7
    at_high = high.sqrt() * clean + (1 - high).sqrt() * noise
    at_low = ddim_step(at_high, noise, high, low, eta, fresh)
    assert float(at_low.mean()) == pytest.approx(float(low.sqrt()) * clean, abs=0.01)
    assert float(at_low.var()) == pytest.approx(float(1 - low), rel=0.01)


def test_eta_1_adds_the_posterior_variance_of_ddpm() -> None:
    """Ho et al. 2020, eq. 7."""
    high, low = torch.tensor([0.5, 0.6], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    moved = ddim_step(zero, zero, high, low, 1.0, torch.ones_like(zero))
    assert float(moved) == pytest.approx(float(((1 - low) / (1 - high) * (1 - high / low)).sqrt()))


def test_step_to_the_clean_level_adds_no_noise() -> None:
    latents, noise = _random(2, 1, 4, 8, 8)
    noisy = ddim_step(latents, noise, ALPHAS[100], ONE, 1.0, torch.full_like(latents, 100.0))
    assert torch.allclose(noisy, ddim_step(latents, noise, ALPHAS[100], ONE), atol=1e-12)


def test_stochastic_step_needs_fresh_noise() -> None:
    latents, noise = _random(2, 1, 4, 8, 8)
    with pytest.raises(ValueError, match="fresh noise"):
        ddim_step(latents, noise, ALPHAS[100], ALPHAS[50], 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_is_added_in_float32_whatever_the_type_of_the_latents(dtype: torch.dtype) -> None:
    """In bfloat16 a = 0.9991 would be 1, and no noise would be added."""
    clean, noise = (each.to(dtype) for each in _random(2, 1, 4, 8, 8))
    level = torch.tensor([0.9991])
    noisy = add_noise(clean, noise, level)
    exact = level.sqrt() * clean.float() + (1 - level).sqrt() * noise.float()
    assert noisy.dtype == dtype and torch.equal(noisy, exact.to(dtype))
    restored = pred_original_sample(noisy, noise, level)
    assert restored.dtype == dtype and torch.allclose(restored.float(), clean.float(), atol=0.02)
