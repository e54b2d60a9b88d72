"""What DefectDiffu learns from: the four losses, and which words a training sample is told.

Losses stand in the paper's eq. 2, 6, 10 and 11; the variance's is not in the paper but in its public code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.diffusion.schedule import add_noise
from defect_core.generators.defectdiffu.ancestral import Chain
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction, raised_logits
from defect_core.generators.defectdiffu.text import EMPTY, GOOD, Conditions
from defect_core.training.loop import bf16_autocast

RATIO_RANGE = (2.0, 8.0)


@dataclass(frozen=True)
class Weights:
    """How the losses are put together.

    Attributes:
        mask: lambda of eq. 11 (paper: 0.2).
        variance: of the variational bound (public code: 1).
        alpha: of eq. 8 (paper: 1e-3).
        cap: the noise losses are weighted by min(1 / alpha_bar, cap): 1 is the paper's, more teaches the noisy steps.
        detach_ratio: whether R passes no gradient to the attention (public code: it does pass one).
    """

    mask: float = 0.2
    variance: float = 1.0
    alpha: float = 1e-3
    cap: float = 1.0
    detach_ratio: bool = True


def total_loss(
    model: DefectDiT,
    chain: Chain,
    latents: Tensor,
    masks: Tensor,
    mask_latents: Tensor,
    conditions: Conditions,
    times: Tensor,
    noise: Tensor,
    weights: Weights,
    region: Tensor | None = None,
) -> Tensor:
    """Eq. 11 with the variance's bound: a scalar.

    Args:
        latents, mask_latents, noise: [B, C, h, w]; images, pictures of their masks, and the noise to add.
        masks: float {0, 1} [B, 1, h, w].
        times: int64 [B], steps of the full chain.
        region: as in `DefectDiT.forward`; R is that of the attention as it would be without.
    """
    noised = add_noise(latents, noise, chain.alpha_bars[times.cpu()])
    with bf16_autocast(latents.device):
        predicted = model(noised, times, conditions, region)
    predicted = Prediction(*(part.float() for part in predicted))
    maps = predicted.maps if region is None else unfocused(predicted.maps, raised_logits(region, model.patch))
    ratio = attention_ratio(maps, masks, weights.alpha)
    ratio = ratio.detach() if weights.detach_ratio else ratio
    scale = (1 / chain.alpha_bars[times.cpu()]).clamp(max=weights.cap).to(latents)
    error = (noise - predicted.noise) ** 2
    simple = (scale * error.flatten(1).mean(1)).mean()
    defect = (scale * ratio * (masks * error).flatten(1).mean(1)).mean()
    mask = ((predicted.mask - mask_latents) ** 2).mean()
    bound = variance_bound(chain, latents, noised, predicted, times).mean()
    return simple + defect + weights.mask * mask + weights.variance * bound


def attention_ratio(maps: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """R of eq. 7 to 9: attention outside the defect over that inside it, held between 2 and 8; [B].

    A token counts as defect if any of its cells does. An empty mask gives 8 (and a defect loss of 0).

    Args:
        maps: [B, M, heads, N], each summing to 1 over N.
        masks: float {0, 1} [B, 1, h, w].
        alpha: keeps the division finite.
    """
    return raw_ratio(maps, masks, alpha).clamp(*RATIO_RANGE)


def unfocused(maps: Tensor, raised: Tensor) -> Tensor:
    """Maps [B, M, heads, N] as they were without `raised` [B, 1, N] on their logits."""
    plain = maps * (-raised[:, None]).exp()
    return plain / plain.sum(-1, keepdim=True)


def raw_ratio(maps: Tensor, masks: Tensor, alpha: float) -> Tensor:
    """Rat of eq. 8, [B]; the map is summed over the blocks and averaged over the heads."""
    seen = maps.sum(1).mean(1)
    side = math.isqrt(seen.shape[-1])
    inside = F.adaptive_max_pool2d(masks.to(seen), side).flatten(1)
    return ((1 - inside) * seen).sum(1) / ((inside * seen).sum(1) + alpha)


def variance_bound(chain: Chain, latents: Tensor, noised: Tensor, predicted: Prediction, times: Tensor) -> Tensor:
    """One term of the variational bound per sample, in bits per dimension, [B]; the mean is frozen.

    KL between the posterior q(x_{t-1} | x_t, x_0) and the network's step (Nichol and Dhariwal 2021, section 3.1). At
    step 0, where the public code counts grey levels, the KL with the usual stand-in for the posterior variance is
    taken: latents have no grey levels.
    """
    mean = chain.posterior_mean(latents, noised, times)
    step = chain.posterior_mean(chain.clean(noised, predicted.noise.detach(), times), noised, times)
    low = chain.log_variances[0][times.cpu()].to(latents).view(-1, 1, 1, 1)
    learned = chain.log_variance(predicted.variance, times)
    divergence = 0.5 * (learned - low - 1 + (low - learned).exp() + (mean - step) ** 2 * (-learned).exp())
    return divergence.flatten(1).mean(1) / math.log(2)


def drop_words(
    pairs: Sequence[tuple[str, str]], product_share: float, defect_share: float, generator: torch.Generator
) -> list[tuple[str, str]]:
    """Leave out conditions at random, so that every pair of the three-branch guidance is trained.

    Each product becomes empty with probability `product_share` and, independently, each defect "good" with
    `defect_share` (paper, algorithm 1, which draws the product twice where the defect is kept; the public code never
    leaves the product out of a defect image, though eq. 4 asks for just that pair). "good" never becomes a defect.
    """
    product, defect = torch.rand((2, len(pairs)), generator=generator).tolist()
    return [
        (EMPTY if product[i] < product_share else pair[0], GOOD if defect[i] < defect_share else pair[1])
        for i, pair in enumerate(pairs)
    ]
