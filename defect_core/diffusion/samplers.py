"""Walks from noise to a clean latent: DDIM with or without fresh noise, hooks at each step, guidance, blending.

A noise model is `(latents, timestep) -> predicted noise`. Level t runs from T (noise) to 1; level 0 is clean.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from defect_core.diffusion.schedule import Trajectory, ddim_move

NoiseModel = Callable[[Tensor, Tensor], Tensor]
Hook = Callable[[Tensor, int], Tensor]


def guide(base: Tensor, *branches: tuple[float, Tensor]) -> Tensor:
    """ε = ε_0 + Σ_i s_i·(ε_i − ε_0); with one branch classifier-free guidance (Ho and Salimans 2022).

    Args:
        base: ε_0, usually of the empty text.
        branches: (s_i, ε_i) of any number of texts.
    """
    guided = base
    for scale, branch in branches:
        guided = guided + scale * (branch - base)
    return guided


def predict_clean(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean latent that a predicted noise implies: (z_t − sqrt(1 − a)·ε) / sqrt(a)."""
    return (latents - float((1 - alpha_bar).sqrt()) * noise) / float(alpha_bar.sqrt())


def ddim_step(
    latents: Tensor,
    noise: Tensor,
    alpha_bar_from: Tensor,
    alpha_bar_to: Tensor,
    eta: float = 0.0,
    fresh_noise: Tensor | None = None,
) -> Tensor:
    """One step downward (Song et al. 2021, eq. 12 and 16); eta 0 is DDIM, eta 1 as random as DDPM.

    z_to = sqrt(a_to)·ẑ_0 + sqrt(1 − a_to − σ²)·ε + σ·n,  σ = eta·sqrt((1 − a_to)/(1 − a_from))·sqrt(1 − a_from/a_to).

    Args:
        latents, noise: z_from and the predicted ε, any shape.
        alpha_bar_from, alpha_bar_to: scalars in (0, 1], rising.
        fresh_noise: n, standard normal; needed when eta > 0.
    """
    if eta == 0:
        return ddim_move(latents, noise, alpha_bar_from, alpha_bar_to)
    if fresh_noise is None:
        raise ValueError("eta > 0 needs fresh noise")
    variance = eta**2 * (1 - alpha_bar_to) / (1 - alpha_bar_from) * (1 - alpha_bar_from / alpha_bar_to)
    direction = (1 - alpha_bar_to - variance).clamp(min=0).sqrt()
    clean = predict_clean(latents, noise, alpha_bar_from)
    return float(alpha_bar_to.sqrt()) * clean + float(direction) * noise + float(variance.sqrt()) * fresh_noise


def sample(
    latents: Tensor,
    predict: NoiseModel,
    trajectory: Trajectory,
    *,
    eta: float = 0.0,
    fresh_noise: Callable[[], Tensor] | None = None,
    start: int | None = None,
    before_step: Hook | None = None,
    after_noise: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    after_step: Hook | None = None,
) -> Tensor:
    """Walk from level `start` down to the clean latent.

    Args:
        latents: z at level `start`.
        predict: noise model; it is told the level's timestep.
        eta, fresh_noise: as in `ddim_step`; `fresh_noise` is called once per step, `NoiseStream` gives one.
        start: level in 1 … T, T if None.
        before_step: (z_t, t) -> z_t, before the noise model sees it.
        after_noise: (ε, z_t, t) -> ε.
        after_step: (z_{t−1}, t − 1) -> z_{t−1}.

    Returns:
        The clean latent.
    """
    if eta > 0 and fresh_noise is None:
        raise ValueError("eta > 0 needs fresh noise")
    for level in range(trajectory.steps if start is None else start, 0, -1):
        if before_step is not None:
            latents = before_step(latents, level)
        noise = predict(latents, trajectory.timesteps[level])
        if after_noise is not None:
            noise = after_noise(noise, latents, level)
        fresh = fresh_noise() if eta > 0 and fresh_noise is not None else None
        bars = trajectory.alpha_bars
        latents = ddim_step(latents, noise, bars[level], bars[level - 1], eta, fresh)
        if after_step is not None:
            latents = after_step(latents, level - 1)
    return latents


def blend(latents: Tensor, normal_latents_noised: Tensor, mask: Tensor) -> Tensor:
    """m⊙z_t + (1 − m)⊙q_t(z_normal): blended diffusion (Avrahami et al. 2022); exact where m is 0 or 1.

    Args:
        latents, normal_latents_noised: [B, C, h, w], at one level.
        mask: m, [B, 1, h, w] in [0, 1].
    """
    return mask * latents + (1 - mask) * normal_latents_noised


class NoiseStream:
    """Standard normal noise [B, *shape], new at each call; every sample draws from its own seed.

    So a sample does not depend on its batch. Drawn on the CPU, so that it does not depend on the device either.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], like: Tensor | None = None) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape, self._like = tuple(shape), like

    def __call__(self) -> Tensor:
        drawn = torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators])
        return drawn if self._like is None else drawn.to(self._like)


def noise_from_seeds(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [len(seeds), *shape], each sample from its own CPU generator."""
    return NoiseStream(seeds, shape)()


def dpm_solver(schedule: Tensor, steps: int) -> Any:
    """diffusers' DPM-Solver++ of second order (Lu et al. 2022), its timesteps set.

    Args:
        schedule: cumulative alphas [N], falling.
        steps: number of steps.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    bars = schedule.double().cpu()
    betas = 1 - bars / torch.cat([bars.new_ones(1), bars[:-1]])
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=len(bars), trained_betas=betas.numpy(), algorithm_type="dpmsolver++", solver_order=2
    )
    with warnings.catch_warnings():
        # it hands tensors to numpy in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        solver.set_timesteps(steps)
    return solver
