"""Losses on predicted noise, attention maps and masks, and the resizing of masks.

z is a latent [B, C, h, w]; a mask is float [B, 1, H, W] in [0, 1] and 1 on the defect.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["global_mean", "masked_mean", "sample_mean", "sum"]
MaskPolicy = Literal["max", "area", "bilinear_half", "nearest"]
AlignmentForm = Literal["token", "paper"]


def noise_loss(
    noise: Tensor, predicted: Tensor, mask: Tensor | None = None, reduction: Reduction = "global_mean"
) -> Tensor:
    """Return ‖m⊙(ε − ε_θ)‖², a scalar; elements outside the mask get no gradient, and an empty mask gives 0.

    Args:
        noise: ε, [B, C, h, w].
        predicted: ε_θ, [B, C, h, w].
        mask: m, [B, 1, h, w]; None is 1 everywhere.
        reduction: `global_mean` divides by all B·C·h·w elements, so a small mask gives a small loss (AnomalyDiffusion's
            public code). `masked_mean` divides by the area of all masks of the batch, at least one element: beside a
            large defect, a small one in the same batch has little weight. `sample_mean` divides by the area of each
            mask and averages over the samples that have one, so all defects have the same weight. `sum` is the norm as
            printed in papers.
    """
    squares = (noise - predicted) ** 2
    if mask is None:
        return squares.sum() if reduction == "sum" else squares.mean()
    squares = mask**2 * squares
    if reduction == "global_mean":
        return squares.mean()
    if reduction == "sum":
        return squares.sum()
    if reduction == "sample_mean":
        return mean_over_samples(squares, mask)
    return squares.sum() / (mask.sum() * noise.shape[1]).clamp(min=1)


def mean_over_samples(values: Tensor, mask: Tensor, batch_mask: Tensor | None = None) -> Tensor:
    """Return the mean over samples of the mean inside each sample's mask, a scalar; 0 if all masks are empty.

    Args:
        values: [B, C, h, w], 0 outside the mask.
        mask: [B, 1, h, w]; samples with an empty mask do not count.
        batch_mask: masks of the whole batch, [N, 1, h, w], if the samples are a part of it: the results of all parts
            add up to that of the batch.
    """
    areas = mask.flatten(1).sum(1)
    means = values.flatten(1).sum(1) / (areas * values.shape[1]).clamp(min=1)
    counted = mask if batch_mask is None else batch_mask
    return means.sum() / (counted.flatten(1).sum(1) > 0).sum().clamp(min=1)


def resize_mask(mask: Tensor, side: int, policy: MaskPolicy = "max") -> Tensor:
    """Return a mask [B, 1, H, W] resized to [B, 1, side, side], float.

    Args:
        mask: values in [0, 1].
        side: height and width of the result.
        policy: `max` takes the largest value in each cell, so no defect is lost. `area` is the covered fraction of each
            cell. `bilinear_half` interpolates without antialiasing and rounds at one half (AnomalyDiffusion's public
            code), so small defects vanish. `nearest` takes the pixel under the corner of each cell.

    Raises:
        ValueError: unknown policy.
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
    """Return the mean over pixels of −(1 − p)^γ·ln p, where p is the probability of the true class.

    Lin et al. 2017, eq. 4 with alpha 1. γ = 0 is the cross-entropy.

    Args:
        logits: [B, K, H, W].
        target: int64 [B, H, W], the true class 0 … K − 1.
        gamma: at least 0.
    """
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    # At 1 − p = 0 the gradient of the power would not be finite.
    one_minus_p = (-torch.expm1(log_p)).clamp(min=1e-12)
    return -(one_minus_p**gamma * log_p).mean()


def alignment_loss(maps: Tensor, masks: Tensor, form: AlignmentForm = "token") -> Tensor:
    """Return the squared difference between attention maps and the masks of their tokens, a mean over positions.

    Args:
        maps: A, [B, G, s, s], the attention to G concepts.
        masks: M, [B, G, s, s], the position of each concept.
        form: `token` is the mean over i of (A_i − M_i)². `paper` is ((1/G)·Σ_i (A_i − M_i))² as CADiff prints its
            localising loss; opposite errors of two concepts cancel there.

    Raises:
        ValueError: unknown form.
    """
    errors = maps - masks.to(maps)
    if form == "token":
        return (errors**2).mean()
    if form == "paper":
        return (errors.mean(1) ** 2).mean()
    raise ValueError(f"unknown form of the alignment loss {form!r}; expected token or paper")


def map_mask_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of each mask with the strongest positions of its map, [B]; NaN for an empty mask.

    As many positions are selected as the mask has. The score thus depends on where the attention is, not on its level.

    Args:
        maps: [B, 1, s, s].
        masks: [B, 1, s, s].
    """
    scores = []
    for values, is_defect in zip(maps.detach().flatten(1), masks.flatten(1) > 0.5, strict=True):
        selected = torch.zeros_like(is_defect)
        selected[values.topk(int(is_defect.sum())).indices] = True
        scores.append((selected & is_defect).sum() / (selected | is_defect).sum())
    return torch.stack(scores)
