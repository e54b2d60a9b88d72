"""Intensity-controllable Attention Re-weighting (IAR) of CADiff (Tong et al. 2026, eq. 11).

Masked Focus Attention (MFA) scales the attention to an anomaly token inside the mask. The Delayed Focus Scheduler (DFS)
decides at which timestep the scaling starts. Masks are float in {0, 1}, 1 on the defect.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from defect_core.diffusion.losses import resize_mask


def sample_strength(seed: int, low: float, high: float, number: int = 0) -> float:
    """Return the intensity w ~ U[low, high] of the n-th defect of a sample, from a separate random stream."""
    return float(np.random.default_rng((seed, 1 + number)).uniform(low, high))


def attention_focus(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the degree of attention focus α = n / |M|, float [B] in [0, 1]; 0 for an empty mask.

    n counts the positions of the mask where the attention exceeds the mean of the whole map. The paper can also be read
    as the mean inside the mask. But about half of the mask exceeds that mean for every map, never three quarters.

    Args:
        maps: attention maps [B, s, s].
        masks: [B, s, s].
    """
    inside = masks > 0.5
    above = maps > maps.mean((1, 2), keepdim=True)
    return (above & inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


class DelayedFocusScheduler:
    """Delayed Focus Scheduler (DFS): re-weighting starts once α exceeds a threshold.

    Args:
        count: number of samples B.
        threshold: α_thr.
        is_latched: re-weighting stays on once it has started (not in the paper). False decides anew at every step.
    """

    def __init__(self, count: int, threshold: float, is_latched: bool = True) -> None:
        self.threshold, self.is_latched = threshold, is_latched
        self.active = torch.zeros(count, dtype=torch.bool)

    def update(self, focus: Tensor) -> Tensor:
        """Return which samples are re-weighted from the next step on, bool [B].

        Args:
            focus: α of this step, [B].
        """
        exceeds = focus > self.threshold  # stays on the device, so that a step does not wait for it
        self.active = exceeds | self.active.to(exceeds.device) if self.is_latched else exceeds
        return self.active


def masked_focus_weights(
    masks: Tensor, strengths: Tensor, active: Tensor, is_masked: bool = True
) -> Callable[[int], Tensor]:
    """Return a function from the side s of a layer to attention weights [B, 1, s, s]: A' = A·(1 − M) + w·A·M.

    The paper prints w·‖M‖₁·A, which taken literally multiplies by the number of pixels in the mask.

    Args:
        masks: M, [B, 1, h, w]; max-pooled to the layer.
        strengths: w, [B].
        active: which samples are re-weighted, bool [B]; the weight of the others is 1.
        is_masked: False re-weights the whole map (the paper's ablation without MFA).
    """
    change = torch.where(active.to(masks.device), strengths.to(masks) - 1, 0)[:, None, None, None]

    def weights(side: int) -> Tensor:
        inside = resize_mask(masks, side)
        return 1 + change * (inside if is_masked else torch.ones_like(inside))

    return weights
