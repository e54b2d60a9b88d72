"""Training loss of DefectDiffu: noise, defect region and mask prediction losses, with the adaptive loss ratio."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.backbones.compute import DEFAULT_COMPUTE, ComputeConfig
from defect_core.diffusion.schedule import add_noise, pred_original_sample
from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction, region_logit_bias
from defect_core.generators.defectdiffu.text import Conditions
from defect_core.training.precision import training_autocast

RATIO_RANGE = (2.0, 8.0)  # eq. 9


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the training loss.

    Attributes:
        mask: lambda of eq. 11. Paper: 0.2.
        variance: weight of the variational bound (not in the paper). Public code: 1.
        alpha: alpha of eq. 8. Paper: 1e-3.
        cap: the noise losses are weighted by min(1 / alpha_bar, cap). 1 disables it, as in the paper.
        detach_ratio: whether R passes no gradient to the attention. Public code: False.
    """

    mask: float = 0.2
    variance: float = 1.0
    alpha: float = 1e-3
    cap: float = 1.0
    detach_ratio: bool = True


@dataclass(frozen=True)
class TrainingBatch:
    """One training batch.

    Attributes:
        latents: latents of the images, [B, C, h, w].
        masks: {0, 1}, float [B, 1, h, w].
        mask_latents: Mask_f of eq. 6, latents of the mask images, [B, C, h, w].
        conditions: text embeddings, [B, W].
        timesteps: int64 [B], of the full schedule.
        noise: the noise to add, [B, C, h, w].
        region: see `DefectDiT.forward`; None for no region.
    """

    latents: Tensor
    masks: Tensor
    mask_latents: Tensor
    conditions: Conditions
    timesteps: Tensor
    noise: Tensor
    region: Tensor | None = None

    def split(self, parts: int) -> "Iterator[TrainingBatch]":
        """Yield consecutive parts of the batch; at most as many as it has samples."""
        for rows in torch.arange(len(self.latents)).chunk(parts):
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            yield TrainingBatch(
                self.latents[span],
                self.masks[span],
                self.mask_latents[span],
                Conditions(*(each[span] for each in self.conditions)),
                self.timesteps[span],
                self.noise[span],
                None if self.region is None else self.region[span],
            )


def training_loss(
    model: DefectDiT,
    schedule: LearnedVarianceSchedule,
    batch: TrainingBatch,
    weights: LossWeights,
    compute: ComputeConfig = DEFAULT_COMPUTE,
) -> Tensor:
    """Return the loss of eq. 11 plus the variational bound for the learned variance, a scalar.

    With a region, R (eq. 9) is computed from the attention maps without the region's logit bias.

    Args:
        model: the transformer.
        schedule: noise levels of all training timesteps.
        batch: see `TrainingBatch`.
        weights: see `LossWeights`.
        compute: number type and attention.
    """
    masks, noise = batch.masks, batch.noise
    alphas_cumprod = schedule.alphas_cumprod[batch.timesteps.cpu()]
    noised = add_noise(batch.latents, noise, alphas_cumprod)
    with training_autocast(batch.latents.device, compute=compute):
        prediction = model(noised, batch.timesteps, batch.conditions, batch.region)
    prediction = Prediction(*(part.float() for part in prediction))
    maps = prediction.attention_maps
    if batch.region is not None:
        maps = remove_logit_bias(maps, region_logit_bias(batch.region, model.patch))
    ratio = adaptive_loss_ratio(maps, masks, weights.alpha)
    ratio = ratio.detach() if weights.detach_ratio else ratio
    scale = (1 / alphas_cumprod).clamp(max=weights.cap).to(batch.latents)
    error = (noise - prediction.noise) ** 2
    noise_loss = (scale * error.flatten(1).mean(1)).mean()
    defect_loss = (scale * ratio * (masks * error).flatten(1).mean(1)).mean()
    mask_loss = ((prediction.mask - batch.mask_latents) ** 2).mean()
    bound = variational_bound(schedule, batch.latents, noised, prediction, batch.timesteps).mean()
    return noise_loss + defect_loss + weights.mask * mask_loss + weights.variance * bound


def attention_ratio(maps: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """Return Rat of eq. 8, the attention outside the defect divided by that inside, [B].

    Map of eq. 7 is summed over the blocks and averaged over the heads. A token is part of the defect if one of its
    cells is.

    Args:
        maps: attention maps, [B, M, heads, N], each with sum 1 over N.
        masks: {0, 1}, float [B, 1, h, w].
        alpha: prevents a division by zero.
    """
    attention = maps.sum(1).mean(1)
    side = math.isqrt(attention.shape[-1])
    inside = F.adaptive_max_pool2d(masks.to(attention), side).flatten(1)
    return ((1 - inside) * attention).sum(1) / ((inside * attention).sum(1) + alpha)


def adaptive_loss_ratio(maps: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """Return R of eq. 9: `attention_ratio` clamped to `RATIO_RANGE`, [B]; 8 for an empty mask."""
    return attention_ratio(maps, masks, alpha).clamp(*RATIO_RANGE)


def remove_logit_bias(maps: Tensor, logit_bias: Tensor) -> Tensor:
    """Return the attention maps [B, M, heads, N] as they are without `logit_bias` [B, 1, N] on their logits."""
    unbiased = maps * (-logit_bias[:, None]).exp()
    return unbiased / unbiased.sum(-1, keepdim=True)


def variational_bound(
    schedule: LearnedVarianceSchedule, latents: Tensor, noised: Tensor, prediction: Prediction, timesteps: Tensor
) -> Tensor:
    """Return one term of the variational bound per sample in bits per dimension, [B].

    It is the KL divergence between q(x_{t-1} | x_t, x_0) and the predicted step (Nichol and Dhariwal 2021, section
    3.1). At timestep 0 the public code uses the likelihood of discrete pixel values. Latents are not discrete, so the
    KL divergence is used there as well. The gradient reaches the variance only.

    Args:
        schedule: noise levels of all training timesteps.
        latents: x_0, [B, C, h, w].
        noised: x_t, [B, C, h, w].
        prediction: the predicted noise and variance.
        timesteps: int64 [B].
    """
    true_mean = schedule.posterior_mean(latents, noised, timesteps)
    pred_latents = pred_original_sample(noised, prediction.noise.detach(), schedule.alphas_cumprod[timesteps.cpu()])
    pred_mean = schedule.posterior_mean(pred_latents, noised, timesteps)
    low = schedule.log_variance_bounds[0][timesteps.cpu()].to(latents).view(-1, 1, 1, 1)
    learned = schedule.log_variance(prediction.variance, timesteps)
    divergence = 0.5 * (learned - low - 1 + (low - learned).exp() + (true_mean - pred_mean) ** 2 * (-learned).exp())
    return divergence.flatten(1).mean(1) / math.log(2)
