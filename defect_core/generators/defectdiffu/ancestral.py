"""Ancestral sampling with learned variance (Nichol and Dhariwal 2021), over all steps or a respaced part of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """A Markov chain of T noise levels.

    Attributes:
        timesteps: int64 [T], rising; what the network is told.
        alpha_bars: float64 [T], falling; level after step k. The clean level 1 stands before the first.
    """

    timesteps: Tensor
    alpha_bars: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def respaced(self, steps: int) -> "Chain":
        """The chain over `steps` evenly spaced levels, both ends included, with betas to match."""
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps must be between 1 and {self.steps}, got {steps}")
        if steps == 1:
            return Chain(self.timesteps[-1:], self.alpha_bars[-1:])
        chosen = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).round().long()
        return Chain(self.timesteps[chosen], self.alpha_bars[chosen])

    @cached_property
    def before(self) -> Tensor:
        """alpha_bar one step nearer to the clean end, float64 [T]."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bars[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        return 1 - self.alpha_bars / self.before

    @cached_property
    def log_variances(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the posterior variance and of beta: the range that the network's variance lies in.

        The first step's posterior variance is 0; the second's stands for it, as usual.
        """
        posterior = self.betas * (1 - self.before) / (1 - self.alpha_bars)
        posterior = torch.cat([posterior[1:2], posterior[1:]]) if self.steps > 1 else self.betas
        return posterior.log(), self.betas.log()

    def clean(self, noised: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_0 from x_t and its noise."""
        level = _at(self.alpha_bars, step, noised)
        return (noised - (1 - level).sqrt() * noise) / level.sqrt()

    def posterior_mean(self, clean: Tensor, noised: Tensor, step: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7); `step` int [B] counts from 0."""
        level, before, beta = (_at(table, step, noised) for table in (self.alpha_bars, self.before, self.betas))
        first = before.sqrt() * beta / (1 - level)
        second = (1 - beta).sqrt() * (1 - before) / (1 - level)
        return first * clean + second * noised

    def log_variance(self, variance: Tensor, step: Tensor) -> Tensor:
        """The network's variance output, -1 to 1, as a log-variance (Nichol and Dhariwal 2021, eq. 15)."""
        low, high = (_at(table, step, variance) for table in self.log_variances)
        share = (variance + 1) / 2
        return share * high + (1 - share) * low

    def step_back(self, noised: Tensor, noise: Tensor, variance: Tensor, step: int, fresh: Tensor) -> Tensor:
        """x_{t-1} from x_t; no fresh noise in the last step (0). x_0 is not clipped."""
        index = torch.full((len(noised),), step)
        mean = self.posterior_mean(self.clean(noised, noise, index), noised, index)
        if step == 0:
            return mean
        return mean + (0.5 * self.log_variance(variance, index)).exp() * fresh


def chain_of(alphas_cumprod: Tensor) -> Chain:
    """The full chain of a training schedule, alphas_cumprod [N]."""
    return Chain(torch.arange(len(alphas_cumprod)), alphas_cumprod.double().cpu())


def _at(table: Tensor, step: Tensor, like: Tensor) -> Tensor:
    return table[step.cpu()].to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
