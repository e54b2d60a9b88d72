"""Muon: momentum whose direction is orthogonalised, for the weight matrices inside a network.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (the five Newton-Schulz iterations and
their coefficients); the step's length and the decay as in Liu et al. 2025, "Muon is scalable for LLM training",
section 2.2. torch.optim.Muon takes neither convolutions nor a learning rate in a tensor, which a recorded step needs.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM, DECAY = 0.95, 0.01
_LENGTH = 0.2  # root mean square of a step, in learning rates: about AdamW's
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


class Muon:
    """The optimiser.

    Args:
        weights: with two dimensions or more; a convolution's kernel is the matrix [out, in x height x width].
        rate: the learning rate, one float32 number on the weights' device, read in each step.

    Attributes:
        momentum: of every weight, in the order given.
    """

    def __init__(self, weights: list[nn.Parameter], rate: Tensor) -> None:
        self._weights, self._rate = weights, rate
        self.momentum = [torch.zeros_like(weight) for weight in weights]
        # matrices of one shape are orthogonalised in one go
        self._alike: dict[torch.Size, list[int]] = defaultdict(list)
        for index, weight in enumerate(weights):
            self._alike[weight.flatten(1).shape].append(index)

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients, which must all be there."""
        gradients = [weight.grad for weight in self._weights]
        torch._foreach_lerp_(self.momentum, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, self.momentum, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(self._weights, 1 - self._rate * DECAY)
        for shape, indices in self._alike.items():
            directions = orthogonalised(torch.stack([ahead[index].flatten(1) for index in indices]))
            directions = directions * (-_LENGTH * max(shape) ** 0.5 * self._rate)
            for index, direction in zip(indices, directions, strict=True):
                self._weights[index].add_(direction.reshape(self._weights[index].shape))


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices [N, R, C], roughly: singular values between 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
