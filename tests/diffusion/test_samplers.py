"""The denoising loop on known noise models: order of calls, exactness, paths, noise from seeds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from defect_core.diffusion.samplers import (
    NoiseStream,
    make_ddim_step,
    make_dpm_solver_step,
    noise_from_seeds,
    sample,
)
from defect_core.diffusion.schedule import add_noise, ddim_step, make_trajectory

SCHEDULE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def _denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
    """Return a deterministic, non-local noise prediction."""
    neighbours = latents.roll(1, -1) + latents.mean((1, 2, 3), keepdim=True)
    return torch.tanh(neighbours + float(timestep) / 1000)


def _latents() -> Tensor:
    return noise_from_seeds([1, 2], (4, 8, 8))


def test_true_noise_leads_back_to_the_clean_latents() -> None:
    clean, noise = _latents(), noise_from_seeds([3, 4], (4, 8, 8))
    trajectory = make_trajectory(SCHEDULE, 20)
    noised = add_noise(clean, noise, trajectory.alphas_cumprod[-1].expand(2))
    sampled = sample(noised, lambda z, t: noise, trajectory, make_ddim_step(trajectory))
    assert torch.allclose(sampled, clean, atol=1e-4)


def test_loop_equals_single_ddim_steps() -> None:
    trajectory = make_trajectory(SCHEDULE, 5)
    stream, expected = NoiseStream([5, 6], (4, 8, 8)), _latents()
    for level in range(5, 0, -1):
        noise = _denoiser(expected, trajectory.timesteps[level])
        levels = trajectory.alphas_cumprod[level], trajectory.alphas_cumprod[level - 1]
        expected = ddim_step(expected, noise, *levels, 0.7, stream())
    step = make_ddim_step(trajectory, 0.7, NoiseStream([5, 6], (4, 8, 8)))
    assert torch.equal(sample(_latents(), _denoiser, trajectory, step), expected)


def test_sampling_returns_from_a_ddim_inversion() -> None:
    trajectory, latents = make_trajectory(SCHEDULE, 200), 0.3 * _latents()
    step = make_ddim_step(trajectory)

    def smooth(latents: Tensor, timestep: Tensor) -> Tensor:
        return 0.1 * torch.tanh(latents)

    inverted = sample(latents, smooth, trajectory, step, path=range(201))
    assert (inverted - latents).abs().mean() > 0.1
    assert torch.allclose(sample(inverted, smooth, trajectory, step), latents, atol=1e-2)


def test_path_may_end_above_the_clean_level_and_continue() -> None:
    trajectory, latents = make_trajectory(SCHEDULE, 6), _latents()
    step = make_ddim_step(trajectory)
    half = sample(latents, _denoiser, trajectory, step, path=range(6, 2, -1))
    assert torch.equal(
        sample(half, _denoiser, trajectory, step, path=[3, 2, 1, 0]), sample(latents, _denoiser, trajectory, step)
    )


def test_hooks_are_called_in_order_at_every_level() -> None:
    trajectory, calls = make_trajectory(SCHEDULE, 4), []

    def record(name: str) -> Callable[..., Tensor]:
        def hook(*values: Any) -> Tensor:
            calls.append((name, values[-1]))
            return values[0]

        return hook

    names = ("before_step", "after_noise", "after_step")
    step = make_ddim_step(trajectory)
    plain = sample(_latents(), _denoiser, trajectory, step)
    hooked = sample(_latents(), _denoiser, trajectory, step, **{name: record(name) for name in names})
    assert torch.equal(hooked, plain)
    expected = []
    for level in (4, 3, 2, 1):
        expected += [("before_step", level), ("after_noise", level), ("after_step", level - 1)]
    assert calls == expected


@pytest.mark.parametrize("name", ["before_step", "after_noise", "after_step"])
def test_hooks_change_the_result(name: str) -> None:
    trajectory = make_trajectory(SCHEDULE, 4)
    step = make_ddim_step(trajectory)
    hooks: dict[str, Any] = {name: lambda *values: values[0] * 0.5}
    changed = sample(_latents(), _denoiser, trajectory, step, **hooks)
    assert not torch.allclose(changed, sample(_latents(), _denoiser, trajectory, step))


def test_stochastic_sampling_needs_fresh_noise() -> None:
    with pytest.raises(ValueError, match="fresh noise"):
        make_ddim_step(make_trajectory(SCHEDULE, 3), eta=1.0)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("start", [25, 15, 1])
def test_dpm_solver_step_equals_the_scheduler_of_diffusers(start: int) -> None:
    bars = SCHEDULE.double()
    betas = 1 - bars / torch.cat([torch.ones(1), bars[:-1]])
    solver = DPMSolverMultistepScheduler(trained_betas=betas.numpy(), algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(25)
    solver.set_begin_index(25 - start)
    expected = _latents()
    for timestep in solver.timesteps[25 - start :]:
        expected = solver.step(_denoiser(expected, timestep), timestep, expected).prev_sample
    trajectory, step = make_dpm_solver_step(SCHEDULE, 25)
    assert torch.equal(sample(_latents(), _denoiser, trajectory, step, path=range(start, -1, -1)), expected)
    assert trajectory.alphas_cumprod[0] == 1
    assert torch.equal(trajectory.alphas_cumprod[1:].float(), SCHEDULE[trajectory.timesteps[1:]])


def test_noise_of_a_sample_depends_on_its_seed_alone() -> None:
    batch, single = NoiseStream([3, 4, 5], (2, 4)), NoiseStream([4], (2, 4))
    for _ in range(3):
        assert torch.equal(batch()[1], single()[0])
    assert torch.equal(noise_from_seeds([3], (2, 4)), NoiseStream([3], (2, 4))())


def test_noise_stream_is_new_at_each_call_and_takes_the_given_type() -> None:
    stream = NoiseStream([3], (2, 4), torch.zeros(1, dtype=torch.float64))
    first = stream()
    assert first.dtype == torch.float64
    assert not torch.equal(first, stream())
