"""Muon: momentum whose direction is orthogonalised, for the weight matrices inside a network.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (the five Newton-Schulz iterations and
their coefficients); the step's length and the decay as in Liu et al. 2025, "Muon is scalable for LLM training",
section 2.2. torch.optim.Muon takes neither convolutions nor a learning rate in a tensor, which a recorded step needs.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTUM, DECAY = 0.95, 0.01
_LENGTH = 0.2  # root mean square of a step, in learning rates: about AdamW's
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
_WIDE = 5  # times as wide as high: from here on the iteration costs less on the Gram matrix


class Muon:
    """The optimiser.

    Args:
        weights: with two dimensions or more; a convolution's kernel is the matrix [out, in x height x width].
        rate: the learning rate, one float32 number on the weights' device, read in each step.
        every: each weight moves in one step of so many, by as many rates, in turn with the others; 1: in each. The
            momentum of all takes in every step. On a CPU, where orthogonalising costs as much as the gradients of a
            small network, 2 learns as much from as many steps.
        kept: share of the momentum that a step keeps.

    Attributes:
        momentum: of every weight, in the order given.
        steps: made so far; decides whose turn it is.
    """

    def __init__(self, weights: list[nn.Parameter], rate: Tensor, every: int = 1, kept: float = MOMENTUM) -> None:
        self._weights, self._rate, self._every, self._kept, self.steps = weights, rate, every, kept, 0
        self.momentum = [torch.zeros_like(weight) for weight in weights]
        # matrices of one shape are orthogonalised in one go
        self._alike: dict[torch.Size, list[int]] = defaultdict(list)
        for index, weight in enumerate(weights):
            self._alike[weight.flatten(1).shape].append(index)

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients, which must all be there."""
        gradients = [weight.grad for weight in self._weights]
        torch._foreach_lerp_(self.momentum, gradients, 1 - self._kept)
        for shape, alike in self._alike.items():
            indices = [index for turn, index in enumerate(alike) if turn % self._every == self.steps % self._every]
            if not indices:
                continue
            weights = [self._weights[index] for index in indices]
            # Nesterov's
            ahead = [torch.lerp(gradients[index], self.momentum[index], self._kept).flatten(1) for index in indices]
            directions = orthogonalised(torch.stack(ahead)) * (-_LENGTH * max(shape) ** 0.5 * self._every * self._rate)
            torch._foreach_mul_(weights, 1 - self._every * self._rate * DECAY)
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction.reshape(weight.shape))
        self.steps += 1


def inner_weights(named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Of a denoiser's parameters those that Muon is for: the matrices between its first and its last layer."""
    ends = "conv_in.", "conv_out."
    return {name: weight for name, weight in named.items() if weight.ndim > 1 and not name.startswith(ends)}


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices [N, R, C], roughly: singular values between 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = _by_gram(x) if x.shape[2] > _WIDE * x.shape[1] else _iterated(x.bfloat16())
    return (x.mT if tall else x).to(matrices.dtype)


def _iterated(x: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor) -> Tensor:
    """The same by fewer multiplications, on the small Gram matrices alone; in bfloat16 these would get negative
    eigenvalues and the iteration no end.
    """
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT
    whole = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for _ in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        whole, gram = factor @ whole, factor @ gram @ factor
    return whole.bfloat16() @ x.bfloat16()
