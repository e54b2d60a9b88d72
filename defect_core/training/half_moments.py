"""AdamW whose moments are stored in bfloat16: half the memory, for networks that fill a GPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_MIX = -1640531527, -2048144789  # odd constants of integer hashes (Knuth's multiplicative hash, and that of xxHash)


class HalfMomentsAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with moments in bfloat16, rounded stochastically.

    The second moment changes by a thousandth per step, less than the spacing of bfloat16, so rounding to the nearest
    would keep it constant. Its state has the keys of torch's AdamW, so that the same checkpoints serve both.

    Args:
        groups: parameter groups with `params`, `lr` and `weight_decay`.
        betas: decay rates of the moments.
        eps: added to the denominator.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})
        for group in self.param_groups:
            for weight in group["params"]:
                moments = {key: torch.zeros_like(weight, dtype=torch.bfloat16) for key in ("exp_avg", "exp_avg_sq")}
                self.state[weight] = {"step": torch.zeros(()), **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                state["step"] += 1
                count, gradient = int(state["step"]), weight.grad.float()
                first = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
                second = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.addcdiv_(first, denominator, value=-rate / (1 - beta1**count))
                state["exp_avg"].copy_(round_stochastically(first, count))
                state["exp_avg_sq"].copy_(round_stochastically(second, count))


def round_stochastically(values: Tensor, step: int) -> Tensor:
    """Return float32 values rounded up or down to bfloat16, up with the probability of the cut-off fraction.

    The choice is a hash of the value's bits and the step, so it needs no random state and is equal on all devices.

    Args:
        values: float32, any shape.
        step: a number that differs between calls.
    """
    bits = values.view(torch.int32)
    offset = (step * _MIX[1]) % 2**31
    threshold = (((bits * _MIX[0]) ^ offset) * _MIX[1]) >> 16 & 0xFFFF
    return ((bits + threshold) & -0x10000).view(torch.float32).to(torch.bfloat16)
