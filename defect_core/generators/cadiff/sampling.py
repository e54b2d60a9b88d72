"""Sampling of CADiff: DDIM with attention re-weighting; the normal image can be kept outside the mask."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.guidance import blend, combine_guidance
from defect_core.diffusion.losses import resize_mask
from defect_core.diffusion.samplers import make_ddim_step, noise_from_seeds, sample
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.diffusion.tokens import EncodedPrompts
from defect_core.generators.base import CheckedRequest, Image, Mask
from defect_core.generators.cadiff.attention_reweighting import (
    DelayedFocusScheduler,
    attention_focus,
    masked_focus_weights,
)
from defect_core.generators.cadiff.model import CADiffModel, anomaly_slots, token_groups
from defect_core.generators.canvas import Window
from defect_core.generators.views import latent_masks, to_denoiser, to_pixels, to_tensor
from defect_core.training.precision import inference_autocast


@dataclass(frozen=True)
class SamplePlan:
    """A checked request with everything that sampling needs.

    Attributes:
        request: the request.
        defects: indices of its defects.
        strengths: intensity w of each defect.
        window: window of the normal image that the canvas shows.
        image: normal image on the canvas, uint8 [R, R, 3].
        mask: mask on the canvas, bool [R, R].
        defect_masks: part of the mask that each defect gets, bool [R, R].
    """

    request: CheckedRequest
    defects: list[int]
    strengths: list[float]
    window: Window
    image: Image
    mask: Mask
    defect_masks: list[Mask]


@torch.no_grad()
def sample_canvases(model: CADiffModel, plans: Sequence[SamplePlan], focus_side: int) -> NDArray[np.floating]:
    """Return one canvas per plan, float [B, R, R, 3] in 0 to 255.

    With `paste` the latents outside the mask are those of the noised normal image at every step (blended diffusion).

    Args:
        model: the trained model.
        plans: B plans.
        focus_side: side of the attention layers on which the delayed focus scheduler measures α.
    """
    config, backbone = model.config, model.backbone
    trajectory = make_trajectory(backbone.alphas_cumprod, config.sampling_steps)
    start = config.sampling_steps
    region = to_denoiser(backbone, latent_masks(backbone, [plan.mask for plan in plans]))
    shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noise = to_denoiser(backbone, noise_from_seeds([plan.request.seed for plan in plans], shape))
    clean = backbone.encode(to_tensor([plan.image for plan in plans]))

    def noised_normal(level: int) -> Tensor:
        return add_noise(clean, noise, trajectory.alphas_cumprod[level].expand(len(plans)))

    latents = noise
    if config.start == "normal":
        start = max(1, round(config.start_level * config.sampling_steps))
        latents = noised_normal(start)
    denoiser = ReweightedDenoiser(model, plans, focus_side)
    with inference_autocast(backbone.denoiser, model.control, compute=backbone.compute):
        latents = sample(
            latents,
            denoiser.predict_noise,
            trajectory,
            make_ddim_step(trajectory),
            path=range(start, -1, -1),
            before_step=(lambda z, level: blend(z, noised_normal(level), region)) if config.paste else None,
            after_step=(lambda z, level: z if level else blend(z, clean, region)) if config.paste else None,
        )
    return to_pixels(backbone.decode(latents))


class ReweightedDenoiser:
    """Predicts noise with intensity-controllable attention re-weighting (IAR, eq. 11) for one batch.

    The attention of one step decides about the re-weighting of the next step, so each step calls the U-Net once.
    """

    def __init__(self, model: CADiffModel, plans: Sequence[SamplePlan], focus_side: int) -> None:
        config, backbone = model.config, model.backbone
        self.config, self.model, self.control = config, model, control_attention(backbone.denoiser)
        self.focus_side, self.is_guided = focus_side, config.guidance_scale > 1
        slots = max(len(plan.defects) for plan in plans)
        encoded = model.encode([config.templates[0]] * len(plans), [plan.defects for plan in plans])
        self.groups = token_groups(encoded, [anomaly_slots(plan.defects, slots) for plan in plans])
        self.text = torch.cat([encoded.states, self._empty_prompts(encoded)]) if self.is_guided else encoded.states
        masks = torch.from_numpy(np.stack([plan.mask for plan in plans]))[:, None].float()
        self.canvas_masks = to_denoiser(backbone, torch.cat([masks] * (1 + self.is_guided)))
        empty = np.zeros_like(plans[0].mask)
        # Entry k contains the masks of the k-th defect of each request; empty if a request has fewer defects.
        self.defect_masks = [
            to_denoiser(backbone, latent_masks(backbone, [(*plan.defect_masks, *[empty] * slots)[k] for plan in plans]))
            for k in range(slots)
        ]
        self.strengths = torch.tensor([[*plan.strengths, *[1.0] * slots][:slots] for plan in plans])
        self.schedulers = [
            DelayedFocusScheduler(len(plans), config.focus_threshold, config.focus_latched) for _ in range(slots)
        ]

    def predict_noise(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return the predicted noise of one step, [B, C, h, w], and update the delayed focus schedulers."""
        noise = self._predict(latents, timestep)
        if self.config.intensity == "attention":
            return noise
        changed = noise
        for k, mask in enumerate(self.defect_masks):
            # eps + (w - 1) (eps - eps without the defect), inside the mask of the defect
            weights = (self.strengths[:, k] - 1).to(noise).view(-1, 1, 1, 1) * mask
            changed = changed + weights * (noise - self._predict(latents, timestep, absent=k))
        return changed

    def _predict(self, latents: Tensor, timestep: Tensor, absent: int | None = None) -> Tensor:
        count = len(latents)
        inputs = torch.cat([latents, latents]) if self.is_guided else latents
        with ExitStack() as stack:
            groups = self._conditional_only(self.groups)
            maps = stack.enter_context(self.control.capture(groups, sides={self.focus_side}))
            for k in range(len(self.defect_masks)):
                self._reweight(stack, k, absent)
            timesteps = timestep.to(latents.device).expand(len(inputs))
            noise = self.model.predict_noise(inputs, timesteps, self.text, self.canvas_masks).to(latents.dtype)
        attention = maps.mean(self.focus_side)[:count]
        for k, mask in enumerate(self.defect_masks):
            focus = attention_focus(attention[:, k], resize_mask(mask, self.focus_side)[:, 0])
            self.schedulers[k].update(focus)
        if not self.is_guided:
            return noise
        return combine_guidance(noise[count:], (self.config.guidance_scale, noise[:count]))

    def _reweight(self, stack: ExitStack, k: int, absent: int | None) -> None:
        """Re-weight the attention to the k-th defect's token of each request until `stack` is closed.

        With `intensity: guidance` its weight in its mask is 0 if k is `absent`, else 1.
        """
        mask, active = self.defect_masks[k], self.schedulers[k].active
        other_masks = [other for index, other in enumerate(self.defect_masks) if index != k]
        # On a GPU this question would wait for it; weights of 1 have no effect.
        is_on_gpu = active.device.type != "cpu"
        is_changed = k == absent if self.config.intensity == "guidance" else is_on_gpu or bool(active.any())
        if not other_masks and not is_changed:
            return
        strengths = self.strengths[:, k]
        if self.config.intensity == "guidance":
            strengths, active = torch.zeros_like(strengths), torch.full_like(active, k == absent)
        focus_weights = masked_focus_weights(mask, strengths, active, self.config.masked_focus)

        def weights(side: int) -> Tensor:
            value = focus_weights(side)
            # The token gets no attention where another defect of the image is (not in the paper).
            for other in other_masks:
                value = value * (1 - resize_mask(other, side) * (1 - resize_mask(mask, side)))
            return self._conditional_only(value)

        self.model.reweight(stack, self._conditional_only(self.groups[:, k] > 0), weights)

    def _conditional_only(self, x: Tensor) -> Tensor:
        """Return x for the conditional part of the batch, and zeros (no effect) for the unconditional part."""
        return torch.cat([x, torch.zeros_like(x)]) if self.is_guided else x

    def _empty_prompts(self, encoded: EncodedPrompts) -> Tensor:
        return self.model.backbone.encode_text([""]).expand(len(encoded.states), -1, -1)
