"""Blended diffusion with adaptive attention re-weighting: a defect drawn into a normal latent (paper eq. 1, §3.3)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.guidance import blend, combine_guidance
from defect_core.diffusion.samplers import Denoiser, NoiseStream, make_ddim_step, sample
from defect_core.diffusion.schedule import Trajectory, add_noise, pred_original_sample
from defect_core.generators.anomaly_diffusion.reweighting import (
    dilation_radius,
    latent_weights,
    scaling_softmax,
    to_layers,
    widen,
)


@dataclass(frozen=True)
class Scene:
    """What is drawn into.

    Attributes:
        image: y, normal canvases [B, 3, R, R] in [-1, 1].
        mask: m at the image's size, [B, 1, R, R] in {0, 1}.
        latents: z_y, the encoded canvases [B, C, h, w].
        cells: m at the latents' size, [B, 1, h, w] in {0, 1}.
    """

    image: Tensor
    mask: Tensor
    latents: Tensor
    cells: Tensor


@dataclass(frozen=True)
class Reweighting:
    """How attention to the learned words is re-weighted while drawing.

    Attributes:
        mode: `paper` or `official`.
        control: of the U-Net that the noise model runs.
        tokens: bool [B, T], the learned words.
        decode: latents to images in [-1, 1]; `paper` only.
        min_difference: see `scaling_softmax`; `paper` only.
    """

    mode: str
    control: AttentionControl
    tokens: Tensor
    decode: Callable[[Tensor], Tensor]
    min_difference: float


def draw(
    scene: Scene,
    predict: Denoiser[Tensor],
    trajectory: Trajectory,
    noise: NoiseStream,
    eta: float = 1.0,
    reweighting: Reweighting | None = None,
    base: Denoiser[Tensor] | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Sample z_0, a defect inside the mask and the normal latent around it.

    Before each call of the noise model z_t ← m⊙z_t + (1 − m)⊙q_t(z_y) with fresh noise, so that what the U-Net sees
    outside the mask is the normal image noised. At the end the clean normal latent is put around once more; what
    remains of the decoder's error is taken off by the composite in pixels.

    `official` widens the mask while t is high and puts nothing around at the end, as the public code does. `paper`
    takes x̂_0 from the step before, which costs a decoding per step but no second call of the U-Net.

    Args:
        scene: where to draw.
        predict: noise model under the defect's words.
        trajectory: levels of DDIM.
        noise: the samples' own randomness.
        eta: of DDIM.
        reweighting: None is off, and takes the same noise.
        base, guidance_scale: noise model under the empty text and the scale of classifier-free guidance against it;
            the base is never re-weighted. None is without guidance.
    """
    mode = "off" if reweighting is None else reweighting.mode
    walk = _Walk(scene)

    def before_step(latents: Tensor, level: int) -> Tensor:
        walk.cells = scene.cells
        if mode == "official":
            widest = scene.cells.shape[-1] // 4
            walk.cells = widen(scene.cells, dilation_radius(int(trajectory.timesteps[level]), widest))
        bar = trajectory.alphas_cumprod[level].expand(len(latents))
        walk.around = add_noise(scene.latents, noise().to(latents), bar)
        return blend(latents, walk.around, walk.cells)

    def weighted(latents: Tensor) -> AbstractContextManager[None]:
        if reweighting is None or (mode == "paper" and walk.clean is None):
            return nullcontext()
        if mode == "official":
            weights = latent_weights(latents, walk.around, walk.cells)
            return reweighting.control.reweight(reweighting.tokens, weights, "logits")
        drawn = reweighting.decode(walk.clean)
        weights = scaling_softmax(scene.image, drawn, scene.mask, reweighting.min_difference)
        return reweighting.control.reweight(reweighting.tokens, to_layers(weights, scene.mask), "probabilities")

    def steered(latents: Tensor, timestep: Tensor) -> Tensor:
        with weighted(latents):
            told = predict(latents, timestep)
        return told if base is None else combine_guidance(base(latents, timestep), (guidance_scale, told))

    def after_noise(predicted: Tensor, latents: Tensor, level: int) -> Tensor:
        if mode == "paper":
            walk.clean = pred_original_sample(latents, predicted, trajectory.alphas_cumprod[level])
        return predicted

    drawn = sample(
        noise().to(scene.latents),
        steered,
        trajectory,
        make_ddim_step(trajectory, eta, lambda: noise().to(scene.latents)),
        before_step=before_step,
        after_noise=after_noise,
    )
    return drawn if mode == "official" else blend(drawn, scene.latents, scene.cells)


class _Walk:
    """What one step leaves for the next: the mask in use, the normal latent around it, the last clean guess."""

    def __init__(self, scene: Scene) -> None:
        self.cells, self.around = scene.cells, scene.latents
        self.clean: Tensor | None = None
