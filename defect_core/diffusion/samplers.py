"""The denoising loop that every generator samples with, its step functions, and noise from seeds.

A denoiser is `(latents, timestep) -> output`; for most methods the output is the predicted noise. A noise level is an
index into a `Trajectory`: T is the noisiest, 0 is clean.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from defect_core.diffusion.schedule import Trajectory, ddim_step

Output = TypeVar("Output")
Denoiser = Callable[[Tensor, Tensor], Output]
Step = Callable[[Tensor, Output, int, int], Tensor]
LatentHook = Callable[[Tensor, int], Tensor]


def sample(
    latents: Tensor,
    denoiser: Denoiser[Output],
    trajectory: Trajectory,
    step: Step[Output],
    *,
    path: Iterable[int] | None = None,
    before_step: LatentHook | None = None,
    after_noise: Callable[[Output, Tensor, int], Output] | None = None,
    after_step: LatentHook | None = None,
) -> Tensor:
    """Move latents along a path of noise levels and return them at its last level.

    Args:
        latents: z at the first level of the path.
        denoiser: called once per step with z and the timestep of the current level.
        trajectory: the timestep of each noise level.
        step: (z, output, level, next level) -> z at the next level, such as `make_ddim_step`.
        path: the noise levels to visit. A falling path samples, a rising path is DDIM inversion; None is T, …, 0.
        before_step: (z, level) -> z, called before the denoiser.
        after_noise: (output, z, level) -> output, called after the denoiser.
        after_step: (z, next level) -> z, called after the step.
    """
    levels = range(trajectory.steps, -1, -1) if path is None else path
    for level, next_level in pairwise(levels):
        if before_step is not None:
            latents = before_step(latents, level)
        output = denoiser(latents, trajectory.timesteps[level])
        if after_noise is not None:
            output = after_noise(output, latents, level)
        latents = step(latents, output, level, next_level)
        if after_step is not None:
            latents = after_step(latents, next_level)
    return latents


def make_ddim_step(
    trajectory: Trajectory, eta: float = 0.0, fresh_noise: Callable[[], Tensor] | None = None
) -> Step[Tensor]:
    """Return the DDIM step for `sample`.

    Args:
        trajectory: the noise levels.
        eta: see `ddim_step`.
        fresh_noise: called once per step if eta > 0; `NoiseStream` is such a function.

    Raises:
        ValueError: eta > 0 without fresh noise.
    """
    if eta > 0 and fresh_noise is None:
        raise ValueError("eta > 0 needs fresh noise")

    def step(latents: Tensor, noise: Tensor, level: int, next_level: int) -> Tensor:
        fresh = None if fresh_noise is None or eta == 0 else fresh_noise()
        levels = trajectory.alphas_cumprod[level], trajectory.alphas_cumprod[next_level]
        return ddim_step(latents, noise, *levels, eta, fresh)

    return step


def make_dpm_solver_step(alphas_cumprod: Tensor, steps: int) -> tuple[Trajectory, Step[Tensor]]:
    """Return the noise levels and the step of diffusers' DPM-Solver++ of second order (Lu et al. 2022).

    The step is multistep: it remembers earlier predictions, so it serves one call of `sample`.

    Args:
        alphas_cumprod: cumulative alphas of the training schedule, [N], falling.
        steps: T, the number of sampling steps from the noisiest level.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    bars = alphas_cumprod.double().cpu()
    betas = 1 - bars / torch.cat([bars.new_ones(1), bars[:-1]])
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=len(bars), trained_betas=betas.numpy(), algorithm_type="dpmsolver++", solver_order=2
    )
    with warnings.catch_warnings():
        # The scheduler converts tensors to NumPy in a way that NumPy 2 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        solver.set_timesteps(steps)
    timesteps = solver.timesteps.flip(0)
    trajectory = Trajectory(
        torch.cat([timesteps.new_zeros(1), timesteps]), torch.cat([bars.new_ones(1), bars[timesteps]])
    )

    def step(latents: Tensor, noise: Tensor, level: int, next_level: int) -> Tensor:
        if solver.step_index is None:
            solver.set_begin_index(trajectory.steps - level)
        return solver.step(noise, int(trajectory.timesteps[level]), latents, return_dict=False)[0]

    return trajectory, step


class NoiseStream:
    """A source of standard normal noise [B, *shape], new at each call.

    Each sample has its own generator, so its noise does not depend on the rest of the batch. The noise is generated on
    the CPU, so it does not depend on the device.

    Args:
        seeds: B seeds, one per sample.
        shape: shape of one sample.
        like: the noise gets the device and the number type of this tensor; None: float32 on the CPU.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], like: Tensor | None = None) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape, self._like = tuple(shape), like

    def __call__(self) -> Tensor:
        """Return the next noise tensor."""
        noise = torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators])
        return noise if self._like is None else noise.to(self._like)


def noise_from_seeds(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return standard normal noise [B, *shape], each sample from its own CPU generator.

    Args:
        seeds: B seeds, one per sample.
        shape: shape of one sample.
    """
    return NoiseStream(seeds, shape)()
