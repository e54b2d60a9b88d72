"""DDIM identities that hold for any network."""

import pytest
import torch

from defect_core.diffusion.schedule import add_noise, ancestral_move, ddim_move, make_trajectory

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


def test_trajectory_runs_from_clean_to_last_step():
    trajectory = make_trajectory(ALPHAS, 50)
    assert trajectory.timesteps[0] == 0 and trajectory.timesteps[-1] == 999
    assert trajectory.alpha_bars[0] == 1
    assert (trajectory.alpha_bars.diff() < 0).all()
    assert torch.equal(trajectory.alpha_bars[1:], ALPHAS[trajectory.timesteps[1:]])


@pytest.mark.parametrize("steps", [0, 1000])
def test_trajectory_refuses_impossible_step_counts(steps):
    with pytest.raises(ValueError, match="steps"):
        make_trajectory(ALPHAS, steps)


def test_true_noise_leads_from_any_level_to_any_other():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=generator, dtype=torch.float64)
    low, high = ALPHAS[200], ALPHAS[800]
    at_low = add_noise(clean, noise, low[None])
    at_high = add_noise(clean, noise, high[None])
    assert torch.allclose(ddim_move(at_high, noise, high, low), at_low, atol=1e-12)
    assert torch.allclose(ddim_move(at_low, noise, low, high), at_high, atol=1e-12)
    assert torch.allclose(ddim_move(at_high, noise, high, torch.ones((), dtype=torch.float64)), clean, atol=1e-12)


def test_an_ancestral_move_keeps_the_marginals_and_ends_at_the_clean_latents():
    generator = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn((2, 200_000), generator=generator, dtype=torch.float64)
    high, low, clean = ALPHAS[800], ALPHAS[300], 1.7
    at_high = high.sqrt() * clean + (1 - high).sqrt() * noise
    at_low = ancestral_move(at_high, noise, high, low, fresh)
    assert float(at_low.mean()) == pytest.approx(float(low.sqrt()) * clean, abs=0.01)
    assert float(at_low.var()) == pytest.approx(float(1 - low), rel=0.01)
    # DDPM's posterior (Ho et al. 2020, eq. 7), whose variance is that of the new noise
    posterior = (1 - low) / (1 - high) * (1 - high / low)
    assert float((at_low - ancestral_move(at_high, noise, high, low, 0 * fresh)).var()) == pytest.approx(
        float(posterior), rel=0.01
    )
    end = ancestral_move(at_low, (at_low - low.sqrt() * clean) / (1 - low).sqrt(), low, torch.ones_like(low), fresh)
    assert torch.allclose(end, torch.full_like(end, clean), atol=1e-9)
