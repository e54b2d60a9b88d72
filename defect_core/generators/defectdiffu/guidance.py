"""Double-free guidance (section 3.3), and sampling of image and mask with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from defect_core.data.records import GOOD
from defect_core.diffusion.guidance import combine_guidance
from defect_core.diffusion.samplers import sample
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction
from defect_core.generators.defectdiffu.text import NULL, ConditionNames, Conditions


class SampledLatents(NamedTuple):
    """Sampled clean latents.

    Attributes:
        image: latents of the image, [B, C, h, w].
        mask: latents of the mask image, [B, C, h, w].
    """

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class DoubleFreeGuidance:
    """Guidance in the product direction and in the defect direction.

    Three branches are eq. 4: eps(c_g, ∅) + w_p (eps(c_g, c_p) - eps(c_g, ∅)) + w_d (eps(c_d, ∅) - eps(c_g, ∅)). Two
    branches are the public code: eps(c_g, c_p) + w_d (eps(c_d, c_p) - eps(c_g, c_p)); they do not use w_p.

    Attributes:
        conditions: text embeddings of all branches, [n·B, W], in the order of `branch_conditions`.
        product_scale: w_p.
        strength: w_d, [B].
        region: where the defect should be, {0, 1} [B, 1, h, w]. Only the branch with the defect condition receives it.
    """

    conditions: Conditions
    product_scale: float
    strength: Tensor
    region: Tensor | None = None

    def predict(self, model: DefectDiT, latents: Tensor, timestep: Tensor) -> Prediction:
        """Return the guided prediction. All branches are predicted in one call of the network.

        The sources do not say which branch gives variance and mask. The variance is from the branch with the product
        condition; mask and attention maps are from the branch with the defect condition.

        Args:
            model: the transformer.
            latents: noisy latents, [B, C, h, w].
            timestep: int scalar.
        """
        batch_size = len(latents)
        count = len(self.conditions.product) // batch_size
        timesteps = timestep.to(latents.device).expand(count * batch_size)
        region = self.region
        if region is not None:
            region = torch.cat([torch.zeros_like(region)] * (count - 1) + [region])
        output = model(latents.repeat(count, 1, 1, 1), timesteps, self.conditions, region)
        parts = (part.to(latents.dtype).split(batch_size) for part in output)
        branches = [Prediction(*branch) for branch in zip(*parts, strict=True)]
        directions: list[tuple[float | Tensor, Tensor]] = [
            (self.strength.to(latents).view(-1, 1, 1, 1), branches[-1].noise)
        ]
        if count == 3:
            directions.append((self.product_scale, branches[1].noise))
        noise = combine_guidance(branches[0].noise, *directions)
        return Prediction(noise, branches[-2].variance, branches[-1].mask, branches[-1].attention_maps)


def branch_conditions(product: str, defect: str, guidance: str) -> list[ConditionNames]:
    """Return the product and defect names of each branch. The first branch is the base of the guidance.

    Args:
        product: name of the product.
        defect: name of the defect.
        guidance: `three_branch` or `two_branch`, see `DoubleFreeGuidance`.

    >>> branch_conditions("screw", "scratch", "three_branch")
    [('', 'good'), ('screw', 'good'), ('', 'scratch')]
    >>> branch_conditions("screw", "scratch", "two_branch")
    [('screw', 'good'), ('screw', 'scratch')]
    """
    if guidance == "three_branch":
        return [(NULL, GOOD), (product, GOOD), (NULL, defect)]
    return [(product, GOOD), (product, defect)]


@torch.no_grad()
def sample_latents(
    model: DefectDiT,
    schedule: LearnedVarianceSchedule,
    guidance: DoubleFreeGuidance,
    noise_stream: Callable[[], Tensor],
    start: int,
    mask_steps: int,
    clean: Tensor | None = None,
) -> SampledLatents:
    """Return sampled latents of image and mask (section 3.3). The mask is averaged over the last steps (section 3.4).

    Args:
        model: the transformer.
        schedule: respaced to the sampling steps T.
        guidance: conditions and guidance scales.
        noise_stream: returns standard normal noise [B, C, h, w]; called once for the start and once per step.
        start: number of steps to take, from 1 to T.
        mask_steps: number of last steps over which the mask is averaged, at least 1.
        clean: latents [B, C, h, w] to start from after noising (not in the paper). None starts from noise, with
            `start` T.
    """
    latents = noise_stream()
    if clean is not None:
        latents = add_noise(clean, latents, schedule.alphas_cumprod[start - 1].expand(len(clean)))
    masks: list[Tensor] = []

    def denoiser(latents: Tensor, timestep: Tensor) -> Prediction:
        return guidance.predict(model, latents, timestep)

    def step(latents: Tensor, prediction: Prediction, level: int, _: int) -> Tensor:
        if level <= mask_steps:
            masks.append(prediction.mask)
        return schedule.previous_sample(latents, prediction.noise, prediction.variance, level - 1, noise_stream())

    latents = sample(latents, denoiser, schedule.trajectory, step, path=range(start, -1, -1))
    return SampledLatents(latents, torch.stack(masks).mean(0))
