"""Disentangled DDIM inversion (Cho et al.) as a generator: a defect inside the mask, the same background outside.

Training is in `training.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import attention_sides, control_attention
from defect_core.diffusion.samplers import noise_from_seeds
from defect_core.diffusion.schedule import make_trajectory
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
from defect_core.generators.disentangled_inversion.inversion import invert_background, sample_defect
from defect_core.generators.disentangled_inversion.refinement import refine_by_attention, refine_by_difference
from defect_core.generators.disentangled_inversion.training import (
    fit_defect_unets,
    fit_product,
    make_loss,
    rows_of_defect,
)
from defect_core.generators.trained import SavedGenerator, TrainedGenerator, load_frozen
from defect_core.generators.views import (
    LatentBank,
    augment_examples,
    encode_views,
    latent_masks,
    to_denoiser,
    to_pixels,
    to_tensor,
)
from defect_core.training.loop import Loss
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
    """One U-Net per product, fine-tuned on all its defects, or one per defect. VAE and text encoder are frozen.

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
        # The class declares what the default settings do. An instance without `paste` keeps no background.
        self.capabilities = replace(CAPABILITIES, keeps_background=config.paste)
        self._control = control_attention(backbone.denoiser)
        self._unets: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        self._current_unet: str | None = None
        check_sides(backbone, config)

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Fine-tune the U-Net on the defective examples of one product; see `Generator.fit`."""
        defective = self.defective_examples(examples)
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        config, backbone = self.config, self.backbone
        views = augment_examples(
            defective,
            config.encoded_variants,
            config.canvas,
            config.context,
            config.min_side,
            backbone.resolution,
            np.random.default_rng(seed),
        )
        bank = encode_views(backbone, views, self.defects)
        prompts = self._encode_prompts()

        def make_loss_of(part: LatentBank) -> Loss:
            return make_loss(backbone, self._control, config, prompts, part)

        if config.models == "product":
            label = f"fine-tuning {self.name} on {self.product}"
            self.training = {"loss": fit_product(backbone, make_loss_of(bank), config, seed, work_dir, label)}
            return
        losses = {defect: make_loss_of(rows_of_defect(bank, self.defects, defect)) for defect in self.defects}
        unets, values = fit_defect_unets(backbone, losses, config, seed, work_dir)
        self._unets, self._current_unet = {defect: unet.copy for defect, unet in unets.items()}, None
        self.training = {"loss": values}

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`."""
        tasks = [self._prepare(request) for request in requests]
        groups: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault(task.request.defect if self.config.models == "defect" else "", []).append(index)
        pairs: dict[int, SyntheticPair] = {}
        for defect, indices in groups.items():
            self._use_unet(defect)
            group = [tasks[index] for index in indices]
            # On a CPU, bfloat16 rounds a batch of one differently, which would change pixels at the edge of the mask.
            is_padded = len(group) == 1 and self.backbone.device.type == "cpu"
            canvases = self._sample_canvases(group * 2 if is_padded else group)
            pairs |= {index: self._make_pair(tasks[index], canvases, row) for row, index in enumerate(indices)}
        yield from (pairs[index] for index in range(len(tasks)))

    def describe(self) -> dict[str, Any]:
        """Return product and defects."""
        return {"product": self.product, "defects": list(self.defects)}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights of the U-Net, or of the U-Net of every defect type."""
        if self.config.models == "product":
            return {"unet": self.backbone.denoiser.state_dict()}
        return {_unet_file(self.defects, defect): read() for defect, read in self._unets.items()}

    @classmethod
    def restore(cls, backbone: Backbone, config: DisentangledInversionConfig, saved: SavedGenerator) -> Self:
        """Return the fitted generator of a folder."""
        generator = cls(backbone, config, saved.description["product"], saved.description["defects"])
        if config.models == "product":
            load_frozen(backbone.denoiser, saved.state_dict("unet"))
        else:
            # A U-Net is read when it is needed, because all of them may be too large for the memory.
            files = {defect: _unet_file(generator.defects, defect) for defect in generator.defects}
            generator._unets = {defect: partial(saved.state_dict, file) for defect, file in files.items()}
        return generator

    def _use_unet(self, defect: str) -> None:
        """Load the U-Net of a defect type, if each has its own, unless it is loaded."""
        if self.config.models == "defect" and self._current_unet != defect:
            load_frozen(self.backbone.denoiser, self._unets[defect]())
            self._current_unet = defect

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
        if self.config.paste:
            image = composite(request.normal_image, full_image, full_mask, self.config.feather)
        else:
            image = np.clip(np.rint(full_image), 0, 255).astype(np.uint8)
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
            self.backbone,
            self._control,
            prompts,
            mask,
            self.config.guidance_scale,
            captures_attention,
            self.config.refinement_sides,
        )


GENERATOR = DisentangledInversion


def check_sides(backbone: Backbone, config: DisentangledInversionConfig) -> None:
    """Check that the backbone has attention layers of the sides in `refinement_sides`.

    Raises:
        InputError: it lacks one.
    """
    sides = attention_sides(backbone.denoiser, backbone.latent_size)
    for side in config.refinement_sides:
        if side not in sides:
            raise InputError(
                f"disentangled-inversion: refinement_sides names {side}, but the backbone's cross-attention has the "
                f"sides {', '.join(map(str, sorted(sides)))}; expected some of these"
            )


def _unet_file(defects: Sequence[str], defect: str) -> str:
    """Return the name of the file of a defect's U-Net, without its extension."""
    return f"unet_{defects.index(defect):02d}"
