"""Disentangled DDIM inversion (Cho et al.) as a generator: a defect inside the mask, the same background outside."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.samplers import noise_from_seeds
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.errors import InputError
from defect_core.generators.base import (
    CheckedRequest,
    Example,
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
)
from defect_core.generators.canvas import Window, choose_window, crop_image, crop_mask, resize_to_window
from defect_core.generators.composite import composite, paste
from defect_core.generators.disentangled_inversion.config import CAPABILITIES, DisentangledInversionConfig
from defect_core.generators.disentangled_inversion.denoiser import (
    MaskedDenoiser,
    PromptEmbeddings,
    encode_prompts,
    format_defect_prompt,
)
from defect_core.generators.disentangled_inversion.inversion import (
    disentanglement_loss,
    invert_background,
    sample_defect,
)
from defect_core.generators.disentangled_inversion.refinement import refine_by_attention, refine_by_difference
from defect_core.generators.trained import SavedGenerator, TrainedGenerator, freeze_in_half_precision, load_frozen
from defect_core.generators.views import (
    LatentBank,
    augment_examples,
    encode_views,
    latent_masks,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import Loss, TrainingConfig, train
from defect_core.training.precision import inference_autocast

LATENT_CELL = 8  # canvas pixels per latent


@dataclass(frozen=True)
class SampleTask:
    """A checked request with its canvas.

    Attributes:
        request: the request.
        window: the part of the image that is sampled.
        canvas: the normal image in the window, uint8 [R, R, 3].
        mask: the requested mask in the window, bool [R, R].
        example: the whole image with the real example pasted in, uint8 [H, W, 3]; None with `start: noise`.
    """

    request: CheckedRequest
    window: Window
    canvas: Image
    mask: Mask
    example: Image | None


class SampledCanvases(NamedTuple):
    """Decoded samples, [B, R, R, 3] in 0 to 255.

    Attributes:
        generated: canvases with the defect.
        reconstructed: normal canvases, encoded and decoded.
        reconstructed_examples: canvases of the examples, encoded and decoded; None without `residual`.
        attention: attention to the defect tokens, [B, h, w]; None unless `refinement` is `attention`.
        cells: latent masks, bool [B, h, w].
    """

    generated: NDArray[np.floating]
    reconstructed: NDArray[np.floating]
    reconstructed_examples: NDArray[np.floating] | None
    attention: NDArray[np.floating] | None
    cells: NDArray[np.bool_]


class DisentangledInversion(TrainedGenerator[DisentangledInversionConfig]):
    """One U-Net per product, fine-tuned on all its defects. VAE and text encoder are frozen.

    Args:
        backbone: the diffusion backbone.
        config: the settings.
        product: fitted product.
        defects: fitted defect types.
    """

    name = "disentangled-inversion"
    capabilities = CAPABILITIES
    config_class = DisentangledInversionConfig

    def __init__(
        self,
        backbone: Backbone,
        config: DisentangledInversionConfig,
        product: str = "",
        defects: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, config)
        self.product, self.defects = product, tuple(defects)
        self._control = control_attention(backbone.denoiser)

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Fine-tune the U-Net on the defective examples of one product; see `Generator.fit`."""
        defective = self.defective_examples(examples)
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        config, denoiser = self.config, self.backbone.denoiser
        views = augment_examples(
            defective,
            config.variants,
            config.canvas,
            config.context,
            config.min_side,
            self.backbone.resolution,
            np.random.default_rng(seed),
        )
        bank = encode_views(self.backbone, views, self.defects)
        denoiser.requires_grad_(True)
        losses = train(
            denoiser,
            self._make_loss(bank),
            TrainingConfig(config.steps, config.learning_rate, config.weight_decay),
            seed=seed,
            work_dir=work_dir,
            label=f"fine-tuning {self.name} on {self.product}",
            compute=self.backbone.compute,
        )
        self.training = {"loss": losses}
        freeze_in_half_precision(denoiser)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`."""
        if len(requests) == 1 and self.backbone.device.type == "cpu":
            # On a CPU, bfloat16 rounds a batch of one differently, which would change pixels at the edge of the mask.
            yield next(self.sample([*requests, *requests]))
            return
        tasks = [self._prepare(request) for request in requests]
        if not tasks:
            return
        canvases = self._sample_canvases(tasks)
        for index, task in enumerate(tasks):
            yield self._make_pair(task, canvases, index)

    def describe(self) -> dict[str, Any]:
        """Return product and defects."""
        return {"product": self.product, "defects": list(self.defects)}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights of the U-Net."""
        return {"unet": self.backbone.denoiser.state_dict()}

    @classmethod
    def restore(cls, backbone: Backbone, config: DisentangledInversionConfig, saved: SavedGenerator) -> Self:
        """Return the fitted generator of a folder."""
        generator = cls(backbone, config, saved.description["product"], saved.description["defects"])
        load_frozen(backbone.denoiser, saved.state_dict("unet"))
        return generator

    def _make_loss(self, bank: LatentBank) -> Loss:
        """Return the loss of one training step as a function of the step and its generator."""
        backbone, denoiser, prompts = self.backbone, self.backbone.denoiser, self._encode_prompts()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            rows = torch.randint(len(bank.latents), (self.config.batch_size,), generator=generator)
            noise = torch.randn(rows.shape + bank.latents.shape[1:], generator=generator)
            timesteps = torch.randint(len(backbone.alphas_cumprod), rows.shape, generator=generator)
            latents, mask = to_denoiser(backbone, bank.latents[rows]), to_denoiser(backbone, bank.masks[rows])
            noise = to_denoiser(backbone, noise)
            noised = add_noise(latents, noise, backbone.alphas_cumprod[timesteps])
            inside = torch.cat([prompts.defect[bank.defects[rows]], prompts.hole.expand(len(rows), -1, -1)])
            with self._control.regions(prompts.background, torch.cat([mask, mask])):
                # One call predicts both terms of eq. 5, because z_t^m = (1 − m)⊙z_t (eq. 6 and 7).
                output = denoiser(
                    torch.cat([noised, (1 - mask) * noised]),
                    to_denoiser(backbone, torch.cat([timesteps, timesteps])),
                    inside,
                )
            defect_noise, background_noise = output.sample.chunk(2)
            return disentanglement_loss(noise, defect_noise, background_noise, mask, self.config.balance)

        return loss

    def _prepare(self, request: SampleRequest) -> SampleTask:
        checked = check_request(request, self.defects)
        config, resolution = self.config, self.backbone.resolution
        window = choose_window(checked.mask, config.canvas, config.context, config.min_side)
        example = None
        if config.start == "example":
            if checked.warped is None:
                raise InputError(f"request {checked.sample_id}: start: example needs a real example; found none")
            # The edge is hard here, because `composite` softens the edge of the sampled defect.
            example = paste(checked.normal_image, checked.warped, checked.mask, 0.0, 1.0)
        canvas = crop_image(checked.normal_image, window, resolution)
        return SampleTask(checked, window, canvas, crop_mask(checked.mask, window, resolution), example)

    @torch.no_grad()
    def _sample_canvases(self, tasks: Sequence[SampleTask]) -> SampledCanvases:
        config, backbone = self.config, self.backbone
        trajectory = make_trajectory(backbone.alphas_cumprod, config.sampling_steps)
        mask = latent_masks(backbone, [task.mask for task in tasks])
        denoiser = self._masked_denoiser(tasks, to_denoiser(backbone, mask))
        clean = self._encode([task.canvas for task in tasks])
        noise = noise_from_seeds([task.request.seed for task in tasks], tuple(clean.shape[1:]))
        noise, example, start = to_denoiser(backbone, noise), None, trajectory.steps
        if config.start == "example":
            windows = [(task.example, task.window) for task in tasks if task.example is not None]
            example = self._encode([crop_image(image, window, backbone.resolution) for image, window in windows])
            start = max(1, round(config.start_level * trajectory.steps))
        with inference_autocast(backbone.denoiser, compute=backbone.compute):
            # Levels above `start` are not sampled, so they are not inverted.
            inversion = invert_background(clean, denoiser.mask, denoiser.predict_background, trajectory, start)
            background = denoiser.predict_background if config.mode == "paper" else None
            latents = sample_defect(
                inversion, denoiser.mask, noise, denoiser.predict_defect, background, trajectory, example, start
            )
        maps = denoiser.attention_maps
        return SampledCanvases(
            to_pixels(backbone.decode(latents)),
            to_pixels(backbone.decode(clean)),
            to_pixels(backbone.decode(example)) if example is not None and config.residual else None,
            torch.stack(maps).mean(0).cpu().numpy() if maps else None,
            mask[:, 0].numpy() > 0,
        )

    def _make_pair(self, task: SampleTask, canvases: SampledCanvases, index: int) -> SyntheticPair:
        request, window = task.request, task.window
        generated = resize_to_window(canvases.generated[index], window)
        mask, soft_mask = self._refine_mask(task, canvases, index, generated)
        full_mask = np.zeros_like(request.mask)
        full_mask[window.slices] = mask
        if task.example is not None and canvases.reconstructed_examples is not None:
            reconstructed = resize_to_window(canvases.reconstructed_examples[index], window)
            generated += task.example[window.slices] - reconstructed
        full_image = request.normal_image.astype(np.float32)
        full_image[window.slices] = generated
        image = composite(request.normal_image, full_image, full_mask, self.config.feather)
        full_soft_mask = None
        if soft_mask is not None:
            full_soft_mask = np.zeros(request.mask.shape, np.float32)
            full_soft_mask[window.slices] = soft_mask
        metadata = {"prompt": format_defect_prompt(self.config, self.product, request.defect)}
        return SyntheticPair(request.sample_id, image, full_mask, full_soft_mask, metadata)

    def _refine_mask(
        self, task: SampleTask, canvases: SampledCanvases, index: int, generated: NDArray[np.floating]
    ) -> tuple[Mask, NDArray[np.float32] | None]:
        """Return the refined mask at the size of the window, never empty, and its soft mask if there is one.

        Args:
            task: the task.
            canvases: the sampled canvases.
            index: index of the task.
            generated: the generated canvas at the size of the window.
        """
        window = task.window
        requested = task.request.mask[window.slices]
        cells = np.kron(canvases.cells[index], np.ones((LATENT_CELL, LATENT_CELL), np.float32))
        allowed = resize_to_window(cells, window) > 0.5
        mask, soft_mask = requested, None
        if self.config.refinement == "difference":
            reconstructed = resize_to_window(canvases.reconstructed[index], window)
            mask, soft_mask = refine_by_difference(generated, reconstructed, allowed)
        elif canvases.attention is not None:
            mask, soft_mask = refine_by_attention(canvases.attention[index], allowed & requested)
        return (mask if mask.any() else requested), soft_mask

    def _encode(self, images: Sequence[Image]) -> Tensor:
        return self.backbone.encode(to_denoiser(self.backbone, to_tensor(images)))

    def _encode_prompts(self) -> PromptEmbeddings:
        return encode_prompts(self.backbone, self.config, self.product, self.defects)

    def _masked_denoiser(self, tasks: Sequence[SampleTask], mask: Tensor) -> MaskedDenoiser:
        prompts = self._encode_prompts()
        rows = [self.defects.index(task.request.defect) for task in tasks]
        prompts = prompts._replace(defect=prompts.defect[rows], defect_tokens=prompts.defect_tokens[rows])
        captures_attention = self.config.refinement == "attention"
        return MaskedDenoiser(
            self.backbone, self._control, prompts, mask, self.config.guidance_scale, captures_attention
        )


GENERATOR = DisentangledInversion
