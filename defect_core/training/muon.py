"""Muon: momentum whose direction is orthogonalize, for the weight matrices inside a network.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": five Newton-Schulz iterations and their
coefficients. Update scale and weight decay as in Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
Written by hand because torch.optim.Muon takes neither convolutions nor a learning rate in a tensor (for CUDA graphs).
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
_UPDATE_RMS = 0.2  # root mean square of an update divided by the learning rate, about that of AdamW (Liu et al. 2025)
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
_GRAM_ASPECT_RATIO = 5  # width / height above which the iteration is cheaper on the Gram matrix


class Muon:
    """The optimizer.

    Args:
        weights: with two dimensions or more; a convolution kernel is the matrix [out, in x height x width].
        learning_rate: one float32 number on the weights' device, read in each step.
        every: each weight moves in one of `every` steps, by `every` times the learning rate, in turn with the others of
            its shape. The momentum of all weights is updated in every step. On a CPU, where orthogonalising costs as
            much as the gradients of a small network, 2 learns as much in the same number of steps.
        decay: fraction of the momentum that a step keeps.

    Attributes:
        momentum: one tensor per weight, in the order of `weights`.
    """

    def __init__(
        self, weights: list[nn.Parameter], learning_rate: Tensor, every: int = 1, decay: float = MOMENTUM
    ) -> None:
        self._weights, self._learning_rate, self._every, self._decay = weights, learning_rate, every, decay
        self.momentum = [torch.zeros_like(weight) for weight in weights]
        # Matrices of one shape are orthogonalize in one batch.
        self._indices_by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, weight in enumerate(weights):
            self._indices_by_shape[weight.flatten(1).shape].append(index)

    @torch.no_grad()
    def step(self, step: int = 0) -> None:
        """Move the weights by their gradients, which all must exist.

        Args:
            step: number of the step from 0; decides which weights move if `every` is above 1.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if len(gradients) < len(self._weights):
            raise ValueError(f"{len(self._weights) - len(gradients)} weight(s) have no gradient; expected one for each")
        # The foreach functions of torch have no public name; torch.optim uses them, too.
        torch._foreach_lerp_(self.momentum, gradients, 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
        for shape, same_shape in self._indices_by_shape.items():
            indices = [index for turn, index in enumerate(same_shape) if turn % self._every == step % self._every]
            if not indices:
                continue
            weights: list[Tensor] = [self._weights[index] for index in indices]
            nesterov = [torch.lerp(gradients[index], self.momentum[index], self._decay).flatten(1) for index in indices]
            scale = -_UPDATE_RMS * max(shape) ** 0.5 * self._every * self._learning_rate
            updates = orthogonalize(torch.stack(nesterov)) * scale
            decay_factor = 1 - self._every * self._learning_rate * WEIGHT_DECAY
            torch._foreach_mul_(weights, decay_factor)  # pyright: ignore[reportPrivateImportUsage]
            for weight, update in zip(weights, updates, strict=True):
                weight.add_(update.reshape(weight.shape))


def select_hidden_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the matrices between the first and the last layer of a denoiser, the parameters that Muon is made for."""
    ends = "conv_in.", "conv_out."
    return {name: weight for name, weight in parameters.items() if weight.ndim > 1 and not name.startswith(ends)}


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrices [N, R, C]; singular values are between 0.7 and 1.2."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = _iterate_on_gram(x) if x.shape[2] > _GRAM_ASPECT_RATIO * x.shape[1] else _iterate(x.bfloat16())
    return (x.mT if is_tall else x).to(matrices.dtype)


def _iterate(x: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_on_gram(x: Tensor) -> Tensor:
    """Do the same with fewer multiplications, on the small Gram matrices.

    In bfloat16 they would get negative eigenvalues, and the iteration would diverge.
    """
    a, b, c = _COEFFICIENTS
    gram = x @ x.mT
    product = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for _ in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    return product.bfloat16() @ x.bfloat16()
