"""DefectDiffu (ECCV 2024) as a generator: one text-guided transformer for all products and defects of a catalogue."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.backbones.locate import find_model
from defect_core.data.records import GOOD
from defect_core.diffusion.mask_rules import isodata_threshold
from defect_core.diffusion.samplers import NoiseStream
from defect_core.errors import InputError
from defect_core.generators.base import Example, Image, Mask, SampleRequest, SyntheticPair, check_mask
from defect_core.generators.canvas import (
    Window,
    choose_window,
    crop_image,
    crop_mask,
    dilate_in_window,
    resize_to_window,
)
from defect_core.generators.composite import composite
from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.config import CAPABILITIES, DefectDiffuConfig
from defect_core.generators.defectdiffu.guidance import DoubleFreeGuidance, branch_conditions, sample_latents
from defect_core.generators.defectdiffu.losses import LossWeights, TrainingBatch, training_loss
from defect_core.generators.defectdiffu.text import (
    ClipTextEncoder,
    HashedTextEncoder,
    TextEncoder,
    consistency_prompts,
    drop_conditions,
    encode_conditions,
)
from defect_core.generators.defectdiffu.view_bank import (
    ViewBank,
    encode_bank,
    encode_condition_table,
)
from defect_core.generators.defectdiffu.weights import (
    ADDED_PREFIXES,
    LoadedTransformer,
    load_transformer,
    make_schedule,
    rebuild_transformer,
)
from defect_core.generators.registry import GeneratorConfig
from defect_core.generators.trained import SavedGenerator, TrainedGenerator, freeze_in_half_precision
from defect_core.generators.views import encode_images, max_pool_masks, to_pixels
from defect_core.training.loop import Loss, TrainingConfig, train
from defect_core.training.precision import inference_autocast

LUMINANCE_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class SampleTask:
    """A checked request with what its sample needs.

    Attributes:
        request: the request.
        normal_image: its normal image, uint8 [H, W, 3].
        window: the part of the image that is sampled.
        strength: w_d of eq. 4.
    """

    request: SampleRequest
    normal_image: Image
    window: Window
    strength: float


class SampledCanvases(NamedTuple):
    """Decoded samples.

    Attributes:
        images: [B, R, R, 3] in 0 to 255; with `adds_difference`, the change that the strength makes.
        masks: luminance of the mask images, [B, R, R] in 0 to 1.
    """

    images: NDArray[np.floating]
    masks: NDArray[np.floating]


class DefectDiffu(TrainedGenerator[DefectDiffuConfig]):
    """One transformer for all products and defects of a catalogue. The backbone gives the VAE only.

    Args:
        backbone: the diffusion backbone.
        config: the settings.
        transformer: the transformer and its noise schedule.
        encoder: the text encoder.
        products: fitted products.
        defects: fitted defect types.

    Raises:
        InputError: the transformer and the VAE have different numbers of latent channels.
    """

    name = "defectdiffu"
    capabilities = CAPABILITIES
    config_class = DefectDiffuConfig

    def __init__(
        self,
        backbone: Backbone,
        config: DefectDiffuConfig,
        transformer: LoadedTransformer,
        encoder: TextEncoder,
        products: Sequence[str] = (),
        defects: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, config)
        self.transformer, self.encoder = transformer, encoder
        self.model, self.schedule = transformer.model.to(backbone.device), transformer.schedule
        self.products, self.defects = tuple(products), tuple(defects)
        self.model.gradient_checkpointing = config.gradient_checkpointing or backbone.compute.gradient_checkpointing
        if self.model.channels != backbone.latent_channels:
            raise InputError(
                f"defectdiffu: dit {config.dit!r} has latents of {self.model.channels} channels, the backbone "
                f"{backbone.name!r} of {backbone.latent_channels}; expected the same number"
            )

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone | None) -> Self:
        """Return a generator that is not fitted; see `Generator.create`."""
        settings = cls._check_config(config)
        encoder = _load_text_encoder(settings)
        transformer = load_transformer(settings.dit, encoder.width, settings.split)
        return cls(cls._check_backbone(backbone), settings, transformer, encoder)

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from the examples of one or more products; see `Generator.fit`. A product may have no defects."""
        self.defects = tuple(sorted({example.defect for example in self.defective_examples(examples)}))
        self.products = tuple(sorted({example.product for example in examples}))
        config = self.config
        folder = work_dir / "views"
        bank = encode_bank(self.backbone, config, examples, self.resolution, self.latent_size, seed, folder)
        self.model.requires_grad_(True)
        losses = train(
            self.model,
            self._make_loss(bank),
            TrainingConfig(
                training_steps(config, len(examples)),
                config.learning_rate,
                config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                schedule=config.schedule,
                moments=config.moments,
                overrides={part: {"learning_rate": config.added_learning_rate} for part in ADDED_PREFIXES},
            ),
            seed=seed,
            work_dir=work_dir,
            label=f"training {self.name} on {', '.join(self.products)}",
            compute=self.backbone.compute,
        )
        self.training = {"loss": losses}
        shutil.rmtree(folder)
        freeze_in_half_precision(self.model)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`. A request may have no mask."""
        tasks = [self.prepare(request) for request in requests]
        if not tasks:
            return
        canvases = self.sample_canvases(tasks)
        for task, image, soft_mask in zip(tasks, *canvases, strict=True):
            yield self.make_pair(task, image, soft_mask)

    def describe(self) -> dict[str, Any]:
        """Return products, defects and the description of the transformer."""
        config = {key: value for key, value in self.model.dit.config.items() if key != "_name_or_path"}
        return {
            "products": list(self.products),
            "defects": list(self.defects),
            "dit": {
                "config": config,
                "schedule": self.transformer.scheduler_config,
                "split": list(self.model.split),
                "digest": self.transformer.digest,
            },
        }

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights of the transformer."""
        return {"transformer": self.model.state_dict()}

    @classmethod
    def restore(cls, backbone: Backbone, config: DefectDiffuConfig, saved: SavedGenerator) -> Self:
        """Return the fitted generator of a folder."""
        description, dit = saved.description, saved.description["dit"]
        model = rebuild_transformer(dit["config"], saved.state_dict("transformer"), tuple(dit["split"]))
        transformer = LoadedTransformer(model, make_schedule(dit["schedule"]), dit["schedule"], dit["digest"])
        encoder = _load_text_encoder(config)
        return cls(backbone, config, transformer, encoder, description["products"], description["defects"])

    @property
    def latent_size(self) -> int:
        """Side of the transformer's latents."""
        return int(self.model.dit.config.sample_size)

    @property
    def resolution(self) -> int:
        """Side of the canvas in pixels."""
        return self.latent_size * (self.backbone.resolution // self.backbone.latent_size)

    @property
    def adds_difference(self) -> bool:
        """Whether the difference of two samples is added to the normal image; see `DefectDiffuConfig.residual`."""
        return self.config.residual and self.config.paste and self.config.start == "normal"

    def choose_strength(self, request: SampleRequest) -> float:
        """Return the requested strength w_d, or one from `strength_range` that depends on the request's seed only."""
        if request.strength is not None:
            return float(request.strength)
        return round(float(np.random.default_rng([request.seed, 1]).uniform(*self.config.strength_range)), 4)

    def prepare(self, request: SampleRequest) -> SampleTask:
        """Check a request and choose its window and strength. Every defect may be requested on every product.

        Raises:
            InputError: unknown product or defect, no normal image, or a mask that does not fit it.
        """
        for kind, name, fitted in (
            ("defect", request.defect, self.defects),
            ("product", request.product, self.products),
        ):
            if name not in fitted:
                raise InputError(
                    f"request {request.sample_id}: {kind} {name!r} was not fitted; expected {' or '.join(fitted)}"
                )
        image, config = request.normal_image, self.config
        if image is None:
            raise InputError(f"request {request.sample_id}: expected a normal image")
        window = Window(0, 0, *image.shape[:2])
        if request.mask is not None:
            check_mask(request.sample_id, image, request.mask)
            window = choose_window(request.mask, config.canvas, config.context, config.min_side)
        return SampleTask(request, image, window, self.choose_strength(request))

    def sample_canvases(self, tasks: Sequence[SampleTask]) -> SampledCanvases:
        """Return the sampled images and masks of the tasks."""
        config, count = self.config, len(tasks)
        canvases = [crop_image(task.normal_image, task.window, self.resolution) for task in tasks]
        if self.adds_difference:
            tasks, canvases = [*tasks, *(replace(task, strength=0.0) for task in tasks)], canvases * 2
        requests = [task.request for task in tasks]
        names = [branch_conditions(request.product, request.defect, config.guidance) for request in requests]
        by_branch = [branches[index] for index in range(len(names[0])) for branches in names]
        schedule = self.schedule.respaced(config.sampling_steps)
        like = torch.empty(0, device=next(self.model.parameters()).device)
        guidance = DoubleFreeGuidance(
            encode_conditions(self.encoder, by_branch).to(like),
            config.product_scale,
            torch.tensor([task.strength for task in tasks]),
            self.make_regions(tasks).to(like),
        )
        clean = None
        if config.start == "normal":
            clean = encode_images(self.backbone, canvases).float().to(self.backbone.device)
        shape = (self.model.channels, self.latent_size, self.latent_size)
        with inference_autocast(self.model, compute=self.backbone.compute):
            latents = sample_latents(
                self.model,
                schedule,
                guidance,
                NoiseStream([request.seed for request in requests], shape, like),
                self._start_step(schedule),
                max(1, round(config.mask_average_fraction * schedule.steps)),
                clean,
            )
        with torch.no_grad():
            images, masks = (to_pixels(self.backbone.decode(part)) for part in latents)
        if self.adds_difference:
            images = images[:count] - images[count:]
        return SampledCanvases(images, masks[:count] @ LUMINANCE_WEIGHTS / 255)

    def make_regions(self, tasks: Sequence[SampleTask]) -> Tensor:
        """Return the requested masks at the size of the latents, {0, 1} [B, 1, h, w]; zeros without a mask."""
        canvas_masks = [np.zeros((self.resolution, self.resolution), bool)] * len(tasks)
        for index, task in enumerate(tasks):
            if task.request.mask is not None and self.config.region_fraction > 0:
                canvas_masks[index] = crop_mask(task.request.mask, task.window, self.resolution)
        return max_pool_masks(canvas_masks, self.latent_size)

    def make_pair(
        self, task: SampleTask, canvas: NDArray[np.floating], soft_mask: NDArray[np.floating]
    ) -> SyntheticPair:
        """Return the pair of a sampled canvas.

        Args:
            task: the task.
            canvas: one of `SampledCanvases.images`, [R, R, 3].
            soft_mask: one of `SampledCanvases.masks`, [R, R].
        """
        request, window, config = task.request, task.window, self.config
        metadata = {
            "prompt": consistency_prompts(request.product, request.defect)[2],
            "strength": task.strength,
            "mask": "predicted",
        }
        soft = np.clip(resize_to_window(soft_mask, window), 0, 1)
        mask = self._binarise(soft)
        if mask is not None and request.mask is not None and config.mask_dilation is not None:
            mask &= dilate_in_window(request.mask, window, config.mask_dilation, self.resolution)
        reject_reason = ""
        if mask is None or not mask.any():
            metadata["mask"] = "requested: the predicted mask has low contrast or is outside the requested region"
            reject_reason = "no mask" if mask is None else "mask outside the request"
            mask = np.ones(soft.shape, bool) if request.mask is None else request.mask[window.slices]
        shape = task.normal_image.shape[:2]
        full_mask, full_soft = np.zeros(shape, bool), np.zeros(shape, np.float32)
        full_mask[window.slices], full_soft[window.slices] = mask, soft
        generated = task.normal_image.astype(np.float32)
        pixels = resize_to_window(canvas, window)
        generated[window.slices] = generated[window.slices] + pixels if self.adds_difference else pixels
        if config.paste:
            image = composite(task.normal_image, generated, full_mask, config.feather)
        else:
            image = np.clip(np.rint(generated), 0, 255).astype(np.uint8)
        return SyntheticPair(request.sample_id, image, full_mask, full_soft, metadata, reject_reason)

    def _make_loss(self, bank: ViewBank) -> Loss:
        """Return the loss of one training step as a function of the step and its generator."""
        config, model = self.config, self.model
        table = encode_condition_table(self.encoder, self.products, self.defects)
        weights = LossWeights(
            config.mask_weight, config.variance_weight, config.alpha, config.weight_cap, config.detach_ratio
        )
        device = next(model.parameters()).device

        accumulate = self.backbone.compute.accumulate

        def loss(step: int, generator: torch.Generator) -> Iterator[Tensor]:
            rows = bank.choose(config.batch_size, config.defect_fraction, generator)
            names = [bank.names[row] for row in rows.tolist()]
            names = drop_conditions(names, config.drop_product, config.drop_defect, generator)
            timesteps = torch.randint(self._start_step(self.schedule), rows.shape, generator=generator)
            latents = bank.latents[rows].to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            has_region = torch.rand(len(names), generator=generator) < config.region_fraction
            has_region &= torch.tensor([defect != GOOD for _, defect in names])
            masks, mask_latents = bank.masks[rows].to(device), bank.mask_latents[rows].to(device)
            conditions = table.lookup(names).to(latents)
            region = masks * has_region.to(masks).view(-1, 1, 1, 1)
            batch = TrainingBatch(latents, masks, mask_latents, conditions, timesteps.to(device), noise, region)
            for part in batch.split(accumulate):
                fraction = len(part.latents) / len(rows)
                yield fraction * training_loss(model, self.schedule, part, weights, self.backbone.compute)

        return loss

    def _start_step(self, schedule: LearnedVarianceSchedule) -> int:
        """Return how many steps sampling takes. Noisier levels are not trained, because sampling never uses them."""
        if self.config.start == "noise":
            return schedule.steps
        return max(1, round(self.config.start_level * schedule.steps))

    def _binarise(self, soft_mask: NDArray[np.float32]) -> Mask | None:
        """Return the mask of the iterative threshold (section 3.4), or None if its two classes hardly differ.

        The threshold returns a nonempty mask for every image, so the check of the contrast is necessary.
        """
        mask = soft_mask >= isodata_threshold(soft_mask)
        if mask.all() or not mask.any():
            return None
        contrast = float(soft_mask[mask].mean() - soft_mask[~mask].mean())
        return mask if contrast >= self.config.mask_contrast else None


GENERATOR = DefectDiffu


def training_steps(config: DefectDiffuConfig, image_count: int) -> int:
    """Return the optimiser steps: those of `epochs` over all images, or `steps`."""
    return config.steps if config.epochs is None else config.epochs * math.ceil(image_count / config.batch_size)


def _load_text_encoder(config: DefectDiffuConfig) -> TextEncoder:
    if config.text == "hashed":
        return HashedTextEncoder()
    patterns = ["text_encoder/*", "tokenizer/*", "*.json", "merges.txt", "model.safetensors", "open_clip_model.*"]
    folder = find_model(
        "text",
        config.text,
        Path(config.text),
        "text_encoder/ and tokenizer/",
        allow_patterns=patterns,
        ignore_patterns=["*.bin"],
    )
    return ClipTextEncoder(folder, config.text_vector)
