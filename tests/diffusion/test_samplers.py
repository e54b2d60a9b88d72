"""Sampling walks on models of noise that are known: exactness, variance, hooks, guidance, blending."""

import pytest
import torch

from defect_core.diffusion.samplers import (
    NoiseStream,
    blend,
    ddim_step,
    dpm_solver,
    guide,
    noise_from_seeds,
    predict_clean,
    sample,
)
from defect_core.diffusion.schedule import add_noise, ddim_move, make_trajectory

SCHEDULE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def _toy(latents, time):
    """Any deterministic, non-local noise model."""
    rolled = latents.roll(1, -1) + latents.mean((1, 2, 3), keepdim=True)
    return torch.tanh(rolled + float(time) / 1000)


def _start(batch=2):
    return torch.randn((batch, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def test_a_perfect_noise_model_leads_back_to_the_clean_latent():
    clean, noise = _start(), noise_from_seeds([1, 2], (4, 8, 8))
    trajectory = make_trajectory(SCHEDULE, 20)
    noised = add_noise(clean, noise, trajectory.alpha_bars[-1].expand(2))
    assert torch.allclose(sample(noised, lambda z, t: noise, trajectory), clean, atol=1e-4)
    bar = trajectory.alpha_bars[7]
    assert torch.allclose(predict_clean(add_noise(clean, noise, bar.expand(2)), noise, bar), clean, atol=1e-4)


def test_eta_0_is_deterministic_ddim_bit_for_bit():
    trajectory = make_trajectory(SCHEDULE, 10)
    latents, (low, high) = _start(), trajectory.alpha_bars[[4, 5]]
    noise = _toy(latents, 0)
    assert torch.equal(ddim_step(latents, noise, high, low), ddim_move(latents, noise, high, low))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_step_keeps_the_variance_that_the_level_says(eta):
    """From exactly noised data, the true noise known, the next level's marginal is q(z_s | z_0)."""
    trajectory = make_trajectory(SCHEDULE, 10)
    bar_from, bar_to = trajectory.alpha_bars[6], trajectory.alpha_bars[5]
    noise, fresh = noise_from_seeds([1, 2], (1, 400, 400))
    clean = torch.full((1, 400, 400), 0.7)
    noised = bar_from.sqrt().float() * clean + (1 - bar_from).sqrt().float() * noise
    moved = ddim_step(noised, noise, bar_from, bar_to, eta, fresh)
    assert float(moved.mean()) == pytest.approx(0.7 * float(bar_to.sqrt()), abs=5e-3)
    assert float(moved.var()) == pytest.approx(1 - float(bar_to), rel=1e-2)
    assert not torch.allclose(moved, ddim_step(noised, noise, bar_from, bar_to))


def test_eta_1_equals_ddpms_posterior_deviation():
    """Ho et al. 2020, eq. 7: the posterior variance between neighbouring levels."""
    bar_from, bar_to = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    moved = ddim_step(zero, zero, bar_from, bar_to, 1.0, torch.ones(1, dtype=torch.float64))
    expected = (1 - bar_to) / (1 - bar_from) * (1 - bar_from / bar_to)
    assert float(moved) == pytest.approx(float(expected.sqrt()))


def test_the_last_step_adds_no_noise():
    trajectory = make_trajectory(SCHEDULE, 10)
    bars = trajectory.alpha_bars
    latents = _start()
    noisy = ddim_step(latents, _toy(latents, 0), bars[1], bars[0], 1.0, torch.full_like(latents, 100.0))
    assert torch.allclose(noisy, ddim_step(latents, _toy(latents, 0), bars[1], bars[0]), atol=1e-5)


def test_fresh_noise_is_asked_for():
    trajectory = make_trajectory(SCHEDULE, 3)
    with pytest.raises(ValueError, match="fresh noise"):
        sample(_start(), _toy, trajectory, eta=1.0)
    with pytest.raises(ValueError, match="fresh noise"):
        ddim_step(_start(), _start(), trajectory.alpha_bars[2], trajectory.alpha_bars[1], 1.0)


def test_hooks_see_every_level_in_order_and_change_the_walk():
    trajectory = make_trajectory(SCHEDULE, 4)
    seen = []

    def note(name):
        def hook(*values):
            seen.append((name, values[-1]))
            return values[0]

        return hook

    plain = sample(_start(), _toy, trajectory)
    hooks = {name: note(name) for name in ("before_step", "after_noise", "after_step")}
    assert torch.equal(sample(_start(), _toy, trajectory, **hooks), plain)
    steps = [[("before_step", t), ("after_noise", t), ("after_step", t - 1)] for t in (4, 3, 2, 1)]
    assert seen == sum(steps, [])
    for name in hooks:
        changed = sample(_start(), _toy, trajectory, **{name: lambda *values: values[0] * 0.5})
        assert not torch.allclose(changed, plain)
    seen.clear()
    sample(_start(), _toy, trajectory, start=2, before_step=note("before_step"))
    assert seen == [("before_step", 2), ("before_step", 1)]


def test_guidance_with_one_branch_is_classifier_free_guidance_and_branches_add_up():
    base, one, two = noise_from_seeds([1, 2, 3], (4, 8, 8))
    assert torch.allclose(guide(base, (5.0, one)), -4 * base + 5 * one, atol=1e-5)
    assert torch.equal(guide(base, (0.0, one)), base)
    assert torch.allclose(guide(base, (8.0, one), (2.0, two)), base + 8 * (one - base) + 2 * (two - base), atol=1e-5)


def test_blending_keeps_each_side_exactly():
    one, two = _start(), noise_from_seeds([5, 6], (4, 8, 8))
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:6] = 1
    inside = mask.bool().expand_as(one)
    mixed = blend(one, two, mask)
    assert torch.equal(mixed[inside], one[inside]) and torch.equal(mixed[~inside], two[~inside])


def test_a_samples_noise_depends_on_its_seed_alone():
    together, alone = NoiseStream([3, 4, 5], (2, 4)), NoiseStream([4], (2, 4))
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])
    stream = NoiseStream([3], (2, 4))
    assert not torch.equal(stream(), stream())
    assert torch.equal(noise_from_seeds([3], (2, 4)), NoiseStream([3], (2, 4))())


def test_the_dpm_solver_walks_the_given_schedule_back_to_the_clean_latent():
    solver = dpm_solver(SCHEDULE, 25)
    assert torch.allclose(solver.alphas_cumprod, SCHEDULE, atol=1e-6)
    assert len(solver.timesteps) == 25
    clean, noise = _start(), noise_from_seeds([1, 2], (4, 8, 8))
    latents = add_noise(clean, noise, SCHEDULE[solver.timesteps[0]].expand(2))
    for time in solver.timesteps:
        latents = solver.step(noise, time, latents).prev_sample
    assert torch.allclose(latents, clean, atol=1e-2)
