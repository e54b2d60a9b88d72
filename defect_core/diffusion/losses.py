"""Losses on noise, attention maps and masks, and the ways to bring a mask to the size they need.

z is a latent [B, C, h, w], a mask float [B, 1, H, W] in [0, 1], 1 on the defect.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["global_mean", "masked_mean", "sum"]
MaskPolicy = Literal["max", "area", "bilinear_half", "nearest"]
AlignmentForm = Literal["token", "paper"]


def noise_loss(
    noise: Tensor, predicted: Tensor, mask: Tensor | None = None, reduction: Reduction = "global_mean"
) -> Tensor:
    """‖m⊙(ε − ε_θ)‖²; what lies outside the mask has no influence, and gets no gradient.

    Args:
        noise, predicted: ε and ε_θ, [B, C, h, w].
        mask: m, [B, 1, h, w]; None is 1 everywhere.
        reduction: `global_mean` divides by all B·C·h·w elements, so a small mask gives a small loss (AnomalyDiffusion's
            public code); `masked_mean` by the mask's own area, at least one element, so a small defect weighs as much
            as a large one; `sum` is the norm as papers print it.

    Returns:
        A scalar; 0 for an empty mask.
    """
    squares = (noise - predicted) ** 2
    if mask is None:
        return squares.sum() if reduction == "sum" else squares.mean()
    squares = mask**2 * squares
    if reduction == "global_mean":
        return squares.mean()
    if reduction == "sum":
        return squares.sum()
    return squares.sum() / (mask.sum() * noise.shape[1]).clamp(min=1)


def resize_mask(mask: Tensor, side: int, policy: MaskPolicy = "max") -> Tensor:
    """A mask [B, 1, H, W] at side × side, float.

    Args:
        mask: values in [0, 1].
        policy: `max` takes the largest value under a cell, so no defect is ever lost; `area` the covered share of it,
            soft; `bilinear_half` interpolates without smoothing and sets what is at least one half (AnomalyDiffusion's
            public code: small defects vanish); `nearest` the pixel under the cell's corner.
    """
    mask = mask.float()
    if mask.shape[-2:] == (side, side):
        return mask if policy != "bilinear_half" else (mask >= 0.5).float()
    if policy == "max":
        return F.adaptive_max_pool2d(mask, side)
    if policy == "area":
        return F.adaptive_avg_pool2d(mask, side)
    if policy == "nearest":
        return F.interpolate(mask, size=(side, side), mode="nearest")
    if policy == "bilinear_half":
        return (F.interpolate(mask, size=(side, side), mode="bilinear") >= 0.5).float()
    raise ValueError(f"unknown mask policy {policy!r}; expected max, area, bilinear_half or nearest")


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """−(1 − p)^γ·ln p of the true class, mean over pixels (Lin et al. 2017, eq. 4, alpha 1); γ = 0: cross-entropy.

    Args:
        logits: [B, K, H, W].
        target: int64 [B, H, W], the true class 0 … K − 1.
        gamma: at least 0.
    """
    true = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    missing = (-torch.expm1(true)).clamp(min=1e-12)  # 1 − p; at 0 the power's gradient would not be finite
    return -(missing**gamma * true).mean()


def alignment_loss(maps: Tensor, masks: Tensor, form: AlignmentForm = "token") -> Tensor:
    """How far attention maps are from the masks of what their tokens mean; the mean over batch and places.

    Args:
        maps: A, [B, G, s, s], the attention paid to G concepts.
        masks: M, [B, G, s, s], where each of them is.
        form: `token` is mean over i of (A_i − M_i)²; `paper` is ((1/G)·Σ_i (A_i − M_i))², as CADiff prints it (its
            localising loss), where opposite errors of two concepts cancel.
    """
    errors = maps - masks.to(maps)
    if form == "token":
        return (errors**2).mean()
    if form == "paper":
        return (errors.mean(1) ** 2).mean()
    raise ValueError(f"unknown form of the alignment loss {form!r}; expected token or paper")


def agreement(maps: Tensor, masks: Tensor) -> Tensor:
    """IoU of each mask with the map's strongest places, as many as the mask has; [B], NaN for an empty mask.

    A ranking, not a threshold: it asks where the attention goes, not how much of it there is.

    Args:
        maps, masks: [B, 1, s, s].
    """
    scores = []
    for values, wanted in zip(maps.detach().flatten(1), masks.flatten(1) > 0.5, strict=True):
        chosen = torch.zeros_like(wanted)
        chosen[values.topk(int(wanted.sum())).indices] = True
        scores.append((chosen & wanted).sum() / (chosen | wanted).sum())
    return torch.stack(scores)
