"""Adaptive attention re-weighting: where the drawn defect still looks like the normal image, its words count for more.

Two forms: the paper's (§3.3, eq. 7), from the decoded image, on attention probabilities; and the public code's, from
the noisy latents, on attention logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 1.5


def scaling_softmax(normal: Tensor, drawn: Tensor, mask: Tensor, min_difference: float) -> Tensor:
    """Adaptive Scaling Softmax (eq. 7): w = ‖m‖₁·softmax(1/d) over the mask's pixels, 0 outside.

    d = ‖m⊙y − m⊙x̂_0‖² per pixel, summed over channels. The paper leaves d → 0 open, where 1/d has no bound; here d
    is at least `min_difference`. The weights' mean over the mask is 1, and equal differences give 1 everywhere.

    Args:
        normal, drawn: y and x̂_0, [B, C, H, W] in [-1, 1].
        mask: m, [B, 1, H, W] in {0, 1}.
        min_difference: above 0.

    Returns:
        [B, 1, H, W]; all 0 for an empty mask.
    """
    inside = mask > 0.5
    difference = (normal - drawn).float().square().sum(1, keepdim=True).clamp(min=min_difference)
    scores = torch.where(inside, 1 / difference, torch.full_like(difference, -torch.inf)).flatten(1)
    shares = torch.nan_to_num(scores.softmax(1)).unflatten(1, inside.shape[1:])
    return inside.flatten(1).sum(1).view(-1, 1, 1, 1) * shares


def to_layers(weights: Tensor, mask: Tensor) -> Callable[[int], Tensor]:
    """Weights at any layer's side: in each cell their mean over the mask's own pixels, 0 where it has none.

    A plain mean would halve the weight of whatever the mask's edge cuts, and all but switch off a thin scratch.

    Args:
        weights: [B, 1, H, W], 0 outside the mask.
        mask: [B, 1, H, W] in {0, 1}.
    """

    def at(side: int) -> Tensor:
        covered = F.adaptive_avg_pool2d(mask.float(), side)
        return F.adaptive_avg_pool2d(weights * mask, side) / covered.clamp(min=1e-12)

    return at


def latent_weights(noisy: Tensor, normal_noised: Tensor, mask: Tensor) -> Tensor:
    """The public code's weights: w = ‖m'‖₁·(m'/d)/Σ(m'/d), zeros set to 1, clamped to [1, 1.5].

    d is the mean over channels of (m'⊙(z_t − q_t(z_y)))². With the paper's softmax replaced by a plain share and the
    clamp, the weights only ever raise attention, by half at most.

    Args:
        noisy, normal_noised: z_t and q_t(z_y), [B, C, h, w].
        mask: m', the widened latent mask [B, 1, h, w] in {0, 1}.

    Returns:
        [B, 1, h, w], 1 outside m'.
    """
    difference = (mask * (noisy - normal_noised)).float().square().mean(1, keepdim=True).clamp(min=1e-6)
    inverse = mask / difference
    total = inverse.flatten(1).sum(1).clamp(min=1e-12).view(-1, 1, 1, 1)
    weights = mask.flatten(1).sum(1).view(-1, 1, 1, 1) * inverse / total
    return torch.where(mask > 0.5, weights, torch.ones_like(weights)).clamp(1.0, LARGEST)


def dilation_radius(timestep: int, widest: int = 8) -> int:
    """By how many latent cells the public code widens the mask: ⌊(t + 100)·widest/1000⌋, none at the end.

    Args:
        timestep: t of 1000 training steps.
        widest: 8 for latents of 32 × 32.
    """
    return (timestep + 100) * widest // 1000


def widen(mask: Tensor, radius: int) -> Tensor:
    """A latent mask [B, 1, h, w] grown by `radius` cells in every direction, diagonals included."""
    return mask if radius == 0 else F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
