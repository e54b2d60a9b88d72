"""Adaptive attention re-weighting: where the defect still looks like the normal image, its tokens get more attention.

The paper (§3.3, eq. 7) compares decoded images and weights attention probabilities. The public code compares the
noisy latent with the normal one and weights attention logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LATENT_WEIGHT = 1.5  # the clamp of the public code
# The smallest squared difference of latents, which keeps the quotient finite.
_MIN_LATENT_DIFFERENCE = 1e-6
_MIN_MEAN_DIFFERENCE = 1e-12  # of an image that equals the normal one; all weights are then 1


def adaptive_scaling_softmax(normal: Tensor, predicted: Tensor, mask: Tensor, min_difference: float) -> Tensor:
    """Return the weights of eq. 7: ‖m‖₁·softmax(1/d) over the mask's pixels, 0 outside.

    d = ‖m⊙y − m⊙x̂_0‖² per pixel, summed over channels. The paper gives no unit of d and does not bound 1/d at d = 0.
    Here d is divided by its mean over the mask, so that the weights do not depend on the contrast of the defect, and is
    then at least `min_difference`. The weights have the mean 1 over the mask. They are 1 if all differences are equal.

    Args:
        normal: y, [B, C, H, W] in [-1, 1].
        predicted: x̂_0, the same shape and range.
        mask: m, [B, 1, H, W] in {0, 1}.
        min_difference: above 0, as a fraction of the mean difference over the mask.

    Returns:
        [B, 1, H, W]; all 0 for an empty mask.
    """
    inside = mask > 0.5
    difference = (normal - predicted).float().square().sum(1, keepdim=True) * inside
    area = inside.flatten(1).sum(1).view(-1, 1, 1, 1)
    mean = difference.flatten(1).sum(1).view(-1, 1, 1, 1) / area.clamp(min=1)
    difference = (difference / mean.clamp(min=_MIN_MEAN_DIFFERENCE)).clamp(min=min_difference)
    scores = torch.where(inside, 1 / difference, torch.full_like(difference, -torch.inf)).flatten(1)
    fractions = torch.nan_to_num(scores.softmax(1)).unflatten(1, inside.shape[1:])
    return area * fractions


def masked_average_pool(weights: Tensor, mask: Tensor) -> Callable[[int], Tensor]:
    """Return a function from the side of an attention layer to the weights at that side, [B, 1, side, side].

    Each cell has the mean over the mask's pixels in it, and 0 without such a pixel. A plain mean would halve the
    weights at the mask's edge and almost switch off a thin scratch.

    Args:
        weights: [B, 1, H, W], 0 outside the mask.
        mask: [B, 1, H, W] in {0, 1}.
    """

    def pool(side: int) -> Tensor:
        coverage = F.adaptive_avg_pool2d(mask.float(), side)
        return F.adaptive_avg_pool2d(weights * mask, side) / coverage.clamp(min=1e-12)

    return pool


def latent_weights(noisy: Tensor, normal: Tensor, mask: Tensor) -> Tensor:
    """Return the public code's weights: ‖m'‖₁·(m'/d)/Σ(m'/d), with zeros set to 1, clamped to [1, 1.5].

    d is the mean over channels of (m'⊙(z_t − z_y))²: the noisy latent is compared with the clean normal one. The code
    replaces the paper's softmax by a plain quotient. With the clamp, the weights only increase attention.

    Args:
        noisy: z_t, [B, C, h, w].
        normal: z_y, the clean normal latent, the same shape.
        mask: m', the dilated latent mask [B, 1, h, w] in {0, 1}.

    Returns:
        [B, 1, h, w]; 1 outside m'.
    """
    difference = (mask * (noisy - normal)).float().square().mean(1, keepdim=True)
    inverse = mask / difference.clamp(min=_MIN_LATENT_DIFFERENCE)
    total = inverse.flatten(1).sum(1).clamp(min=1e-12).view(-1, 1, 1, 1)
    weights = mask.flatten(1).sum(1).view(-1, 1, 1, 1) * inverse / total
    return torch.where(mask > 0.5, weights, torch.ones_like(weights)).clamp(1.0, MAX_LATENT_WEIGHT)


def dilation_radius(timestep: int, max_radius: int = 8) -> int:
    """Return the radius in latent cells by which the public code dilates the mask: ⌊(t + 100)·max_radius/1000⌋.

    Args:
        timestep: t of 1000 training timesteps.
        max_radius: 8 for latents of 32 × 32.
    """
    return (timestep + 100) * max_radius // 1000


def dilate_latent_mask(mask: Tensor, radius: int) -> Tensor:
    """Return a latent mask [B, 1, h, w] dilated by a square of side 2·radius + 1 cells."""
    return mask if radius == 0 else F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
