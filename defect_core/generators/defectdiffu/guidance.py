"""Double-free guidance, and the walk from noise to image and mask under it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from defect_core.diffusion.samplers import guide
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.defectdiffu.ancestral import Chain
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction
from defect_core.generators.defectdiffu.text import EMPTY, GOOD, Conditions

Pair = tuple[str, str]


class Drawn(NamedTuple):
    """Clean latents of image and mask, each [B, C, h, w]."""

    image: Tensor
    mask: Tensor


def branches(product: str, defect: str, guidance: str) -> list[Pair]:
    """The (product, defect) words that the network is asked under, the base first.

    >>> branches("screw", "scratch", "three_branch")
    [('', 'good'), ('screw', 'good'), ('', 'scratch')]
    >>> branches("screw", "scratch", "two_branch")
    [('screw', 'good'), ('screw', 'scratch')]
    """
    if guidance == "three_branch":
        return [(EMPTY, GOOD), (product, GOOD), (EMPTY, defect)]
    return [(product, GOOD), (product, defect)]


def guided(
    model: DefectDiT,
    latents: Tensor,
    time: Tensor,
    conditions: Conditions,
    product_scale: float,
    strength: Tensor,
    region: Tensor | None = None,
) -> Prediction:
    """The network's answer under guidance, all branches in one call.

    Three branches (paper, eq. 4): eps(g, -) + w_p (eps(g, p) - eps(g, -)) + w_d (eps(d, -) - eps(g, -)). Two (public
    code): eps(g, p) + w_d (eps(d, p) - eps(g, p)), in which w_p has no part. The variance is that of the branch that
    knows the product, mask and maps are those of the branch that knows the defect; the sources say neither.

    Args:
        latents: [B, C, h, w].
        time: int scalar.
        conditions: [n·B, W], branch after branch in the order of `branches`.
        product_scale, strength: w_p, and w_d as [B].
        region: where the defect belongs, {0, 1} [B, 1, h, w]; told to the branch that knows the defect.
    """
    count, size = len(conditions.product) // len(latents), len(latents)
    times = time.to(latents.device).expand(count * size)
    if region is not None:
        region = torch.cat([torch.zeros_like(region)] * (count - 1) + [region])
    answer = model(latents.repeat(count, 1, 1, 1), times, conditions, region)
    wholes = (whole.to(latents.dtype).split(size) for whole in answer)
    parts = [Prediction(*piece) for piece in zip(*wholes, strict=True)]
    dial = strength.to(latents).view(-1, 1, 1, 1)
    steered = [(dial, parts[-1].noise)]
    if count == 3:
        steered.append((product_scale, parts[1].noise))
    noise = guide(parts[0].noise, *steered)
    return Prediction(noise, parts[-2].variance, parts[-1].mask, parts[-1].maps)


@torch.no_grad()
def draw(
    model: DefectDiT,
    chain: Chain,
    clean: Tensor | None,
    start: int,
    fresh_noise: Callable[[], Tensor],
    conditions: Conditions,
    product_scale: float,
    strength: Tensor,
    mask_steps: int,
    region: Tensor | None = None,
) -> Drawn:
    """Walk the chain down to the clean end (section 3.3), the mask averaged over the last steps (section 3.4).

    Args:
        chain: respaced to the sampling steps T.
        clean: latents [B, C, h, w] to start from, noised to level `start`; None starts from pure noise at level T.
        start: number of steps to walk, 1 to T; T where `clean` is None.
        fresh_noise: called for the start's noise [B, C, h, w], then once per step.
        mask_steps: number of last steps, at least 1.
        region: see `guided`.
    """
    latents = fresh_noise()
    if clean is not None:
        latents = add_noise(clean, latents, chain.alpha_bars[start - 1].expand(len(clean)))
    masks: list[Tensor] = []
    for step in range(start - 1, -1, -1):
        answer = guided(model, latents, chain.timesteps[step], conditions, product_scale, strength, region)
        latents = chain.step_back(latents, answer.noise, answer.variance, step, fresh_noise())
        if step < mask_steps:
            masks.append(answer.mask)
    return Drawn(latents, torch.stack(masks).mean(0))
