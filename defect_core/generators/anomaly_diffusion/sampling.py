"""Blended diffusion with adaptive attention re-weighting: sample a defect inside a normal latent (eq. 1, §3.3)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.guidance import blend, combine_guidance
from defect_core.diffusion.samplers import Denoiser, NoiseStream, make_ddim_step, sample
from defect_core.diffusion.schedule import Trajectory, add_noise, pred_original_sample
from defect_core.generators.anomaly_diffusion.reweighting import (
    adaptive_scaling_softmax,
    dilate_latent_mask,
    dilation_radius,
    latent_weights,
    masked_average_pool,
)

# The public code dilates masks of 32 × 32 latents by at most 8 cells.
_MAX_DILATION_DIVISOR = 4


@dataclass(frozen=True)
class NormalCanvases:
    """The normal canvases that receive defects, and the masks of the defects.

    Attributes:
        images: y, [B, 3, R, R] in [-1, 1].
        masks: m at the size of the images, [B, 1, R, R] in {0, 1}.
        latents: z_y, the encoded images [B, C, h, w].
        latent_masks: m at the size of the latents, [B, 1, h, w] in {0, 1}.
    """

    images: Tensor
    masks: Tensor
    latents: Tensor
    latent_masks: Tensor


@dataclass(frozen=True)
class Reweighting:
    """How attention to the learned tokens is re-weighted while sampling.

    Attributes:
        mode: `paper` or `official`.
        control: of the U-Net that the denoiser calls.
        tokens: bool [B, T], True for the learned tokens.
        decode: latents to images in [-1, 1]; for `paper`.
        min_difference: see `adaptive_scaling_softmax`; for `paper`.
    """

    mode: str
    control: AttentionControl
    tokens: Tensor
    decode: Callable[[Tensor], Tensor]
    min_difference: float


def sample_blended(
    normal: NormalCanvases,
    denoiser: Denoiser[Tensor],
    trajectory: Trajectory,
    noise: NoiseStream,
    eta: float = 1.0,
    reweighting: Reweighting | None = None,
    guidance: tuple[float, Denoiser[Tensor]] | None = None,
    blend_result: bool = True,
) -> Tensor:
    """Return z_0 with a defect inside the mask and the normal latent outside.

    Before each call of the denoiser z_t ← m⊙z_t + (1 − m)⊙q_t(z_y) with fresh noise: outside the mask the U-Net
    receives the noised normal image. The result is blended with the clean normal latent, as eq. 1 says for t = 1.

    `official` follows the public code: it dilates the mask at high noise levels.
    `paper` uses x̂_0 of the step before, which needs one decoding per step but no second call of the U-Net.

    Args:
        normal: where to sample defects.
        denoiser: predicts the noise, conditioned on the defects' tokens.
        trajectory: noise levels of DDIM.
        noise: the randomness of the samples.
        eta: stochasticity of DDIM.
        reweighting: None disables it and consumes the same noise.
        guidance: weight of classifier-free guidance, and what predicts the noise under the empty prompt, which is never
            re-weighted; None disables guidance.
        blend_result: whether to blend the result with the clean normal latent; the public code does not.
    """
    steps = _BlendedSteps(normal, trajectory, noise, reweighting)

    def guided_denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
        with steps.reweighted(latents):
            conditional = denoiser(latents, timestep)
        if guidance is None:
            return conditional
        scale, unconditional = guidance
        return combine_guidance(unconditional(latents, timestep), (scale, conditional))

    latents = sample(
        steps.noise(),
        guided_denoiser,
        trajectory,
        make_ddim_step(trajectory, eta, steps.noise),
        before_step=steps.blend_with_normal,
        after_noise=steps.remember_original_sample,
    )
    return blend(latents, normal.latents, normal.latent_masks) if blend_result else latents


class _BlendedSteps:
    """The parts of one sampling step, and what a step leaves for the next."""

    def __init__(
        self, normal: NormalCanvases, trajectory: Trajectory, noise: NoiseStream, reweighting: Reweighting | None
    ) -> None:
        self.normal, self.trajectory, self.reweighting = normal, trajectory, reweighting
        self.mode = "off" if reweighting is None else reweighting.mode
        self.latent_masks = normal.latent_masks
        self.original_sample: Tensor | None = None
        self._noise = noise

    def noise(self) -> Tensor:
        return self._noise().to(self.normal.latents)

    def blend_with_normal(self, latents: Tensor, level: int) -> Tensor:
        self.latent_masks = self.normal.latent_masks
        if self.mode == "official":
            max_radius = self.latent_masks.shape[-1] // _MAX_DILATION_DIVISOR
            radius = dilation_radius(int(self.trajectory.timesteps[level]), max_radius)
            self.latent_masks = dilate_latent_mask(self.latent_masks, radius)
        alphas_cumprod = self.trajectory.alphas_cumprod[level].expand(len(latents))
        noised_normal = add_noise(self.normal.latents, self.noise(), alphas_cumprod)
        return blend(latents, noised_normal, self.latent_masks)

    def reweighted(self, latents: Tensor) -> AbstractContextManager[None]:
        if self.reweighting is None:
            return nullcontext()
        control, tokens = self.reweighting.control, self.reweighting.tokens
        if self.mode == "official":
            return control.reweight(tokens, latent_weights(latents, self.normal.latents, self.latent_masks), "logits")
        if self.original_sample is None:
            return nullcontext()
        images, masks = self.reweighting.decode(self.original_sample), self.normal.masks
        weights = adaptive_scaling_softmax(self.normal.images, images, masks, self.reweighting.min_difference)
        return control.reweight(tokens, masked_average_pool(weights, masks), "probabilities")

    def remember_original_sample(self, predicted: Tensor, latents: Tensor, level: int) -> Tensor:
        if self.mode == "paper":
            self.original_sample = pred_original_sample(latents, predicted, self.trajectory.alphas_cumprod[level])
        return predicted
