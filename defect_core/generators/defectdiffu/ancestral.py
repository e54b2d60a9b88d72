"""Ancestral sampling with learned variance (Nichol and Dhariwal 2021), with all training timesteps or some of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from defect_core.diffusion.schedule import Trajectory, pred_original_sample


@dataclass(frozen=True)
class LearnedVarianceSchedule:
    """The T noise levels of a Markov chain whose reverse steps have a learned variance.

    A step k counts from 0, the cleanest noisy level, to T - 1.

    Attributes:
        timesteps: int64 [T], rising; the training timestep that the network receives at each step.
        alphas_cumprod: float64 [T], falling; cumulative alpha at each step.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "LearnedVarianceSchedule":
        """Return the schedule of all training timesteps, for cumulative alphas [N]."""
        return cls(torch.arange(len(alphas_cumprod)), alphas_cumprod.double().cpu())

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.timesteps)

    def respaced(self, steps: int) -> "LearnedVarianceSchedule":
        """Return a schedule of `steps` evenly spaced noise levels, the first and the last included (section 4).

        Raises:
            ValueError: `steps` is not between 1 and T.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps must be between 1 and {self.steps}, got {steps}")
        if steps == 1:
            return LearnedVarianceSchedule(self.timesteps[-1:], self.alphas_cumprod[-1:])
        chosen = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).round().long()
        return LearnedVarianceSchedule(self.timesteps[chosen], self.alphas_cumprod[chosen])

    @cached_property
    def trajectory(self) -> Trajectory:
        """The clean level and all steps: level k of the trajectory is step k - 1."""
        return Trajectory(
            torch.cat([self.timesteps.new_zeros(1), self.timesteps]),
            torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod]),
        )

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """Cumulative alpha of the next cleaner level, float64 [T]."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        """Variance of the noise that each step of the forward process adds, float64 [T]."""
        return 1 - self.alphas_cumprod / self.alphas_cumprod_prev

    @cached_property
    def log_variance_bounds(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the posterior variance and of beta, the bounds of the learned variance; float64 [T] each.

        The posterior variance of step 0 is 0, so it is replaced by that of step 1.
        """
        posterior = self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        posterior = torch.cat([posterior[1:2], posterior[1:]]) if self.steps > 1 else self.betas
        return posterior.log(), self.betas.log()

    def posterior_mean(self, clean: Tensor, noised: Tensor, step: Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7).

        Args:
            clean: x_0, [B, ...].
            noised: x_t, [B, ...].
            step: int [B].
        """
        tables = (self.alphas_cumprod, self.alphas_cumprod_prev, self.betas)
        alpha_cumprod, alpha_cumprod_prev, beta = (_at(table, step, noised) for table in tables)
        clean_weight = alpha_cumprod_prev.sqrt() * beta / (1 - alpha_cumprod)
        noised_weight = (1 - beta).sqrt() * (1 - alpha_cumprod_prev) / (1 - alpha_cumprod)
        return clean_weight * clean + noised_weight * noised

    def log_variance(self, variance: Tensor, step: Tensor) -> Tensor:
        """Return the logarithm of the learned variance (Nichol and Dhariwal 2021, eq. 15).

        Args:
            variance: output of the network, [B, ...], from -1 (posterior variance) to 1 (beta).
            step: int [B].
        """
        low, high = (_at(table, step, variance) for table in self.log_variance_bounds)
        fraction = (variance + 1) / 2
        return fraction * high + (1 - fraction) * low

    def previous_sample(
        self, noised: Tensor, noise: Tensor, variance: Tensor, step: int, fresh_noise: Tensor
    ) -> Tensor:
        """Return x_{t-1}. x_0 is not clipped, because latents have no fixed range.

        Args:
            noised: x_t, [B, ...].
            noise: predicted noise, [B, ...].
            variance: output of the network, see `log_variance`.
            step: the step of x_t.
            fresh_noise: standard normal, [B, ...]; not used at step 0.
        """
        index = torch.full((len(noised),), step)
        mean = self.posterior_mean(pred_original_sample(noised, noise, self.alphas_cumprod[index]), noised, index)
        if step == 0:
            return mean
        return mean + (0.5 * self.log_variance(variance, index)).exp() * fresh_noise


def _at(table: Tensor, step: Tensor, like: Tensor) -> Tensor:
    """Return the entries of a table at steps [B], shaped to broadcast with `like` [B, ...]."""
    return table[step.cpu()].to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
