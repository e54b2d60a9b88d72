"""Intensity-controllable re-weighting (CADiff eq. 11): how much, where and from when on a defect's token counts.

Places are those of a map or layer of side s, masks float {0, 1}, 1 on the defect.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from defect_core.diffusion.losses import resize_mask


def draw_strength(seed: int, low: float, high: float) -> float:
    """w ~ U[low, high] from a sample's seed, by a stream of its own."""
    return float(np.random.default_rng((seed, 1)).uniform(low, high))


def focus(maps: Tensor, masks: Tensor) -> Tensor:
    """α = n / |M|: the share of the mask's places where the attention exceeds the mean of the whole map.

    The paper's "average value in the attention map within an anomaly mask" can be read otherwise, but a mean over the
    mask alone would be exceeded by about half of it whatever the map, and never by three quarters.

    Args:
        maps, masks: [B, s, s].

    Returns:
        [B] in [0, 1]; 0 for an empty mask.
    """
    inside = masks > 0.5
    above = maps > maps.mean((1, 2), keepdim=True)
    return (above & inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


class DelayedFocus:
    """The delayed focus scheduler: re-weighting begins once α exceeds a threshold.

    `latched` (ours) lets it stay on from then on; otherwise α decides anew at each step.
    """

    def __init__(self, count: int, threshold: float, latched: bool = True) -> None:
        self.threshold, self.latched = threshold, latched
        self.active = torch.zeros(count, dtype=torch.bool)

    def update(self, share: Tensor) -> Tensor:
        """Take α, [B], of this step; returns which samples are re-weighted from now on, bool [B]."""
        over = share.cpu() > self.threshold
        self.active = over | self.active if self.latched else over
        return self.active


def spatial_weights(masks: Tensor, strengths: Tensor, active: Tensor, masked: bool = True) -> Callable[[int], Tensor]:
    """A' = A·(1 − M) + w·A·M as weights on A for a layer of side s, in the form that `reweight` takes.

    The paper prints w·‖M‖₁·A, which would multiply by the number of the mask's pixels.

    Args:
        masks: M, [B, 1, h, w]; max-pooled to the layer.
        strengths: w, [B].
        active: bool [B]; elsewhere the weight is 1.
        masked: False re-weights the whole map (the paper's ablation without masked focus).
    """
    change = torch.where(active.to(masks.device), strengths.to(masks) - 1, 0)[:, None, None, None]

    def weights(side: int) -> Tensor:
        places = resize_mask(masks, side)
        return 1 + change * (places if masked else torch.ones_like(places))

    return weights
