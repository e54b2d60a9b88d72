"""Training of CADiff on one product: tokens, control branch and, with `tune_denoiser`, the U-Net (joint training)."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing
from defect_core.diffusion.losses import map_mask_iou, resize_mask
from defect_core.generators.base import Example
from defect_core.generators.cadiff.config import CADiffConfig
from defect_core.generators.cadiff.model import CADiffModel, TrainingBatch
from defect_core.generators.trained import freeze_in_half_precision
from defect_core.generators.views import View, augment_examples, encode_views, to_denoiser
from defect_core.training.loop import TrainingConfig, train

EVALUATION_VIEWS = 32  # largest number of defect views in `attention_iou`


class TrainingViews:
    """Encoded views of defect examples and, with `config.normal_fraction`, of normal ones, and batches of them."""

    def __init__(
        self,
        backbone: Backbone,
        config: CADiffConfig,
        defective: Sequence[Example],
        normal: Sequence[Example],
        defects: Sequence[str],
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)

        def augment_all(examples: Sequence[Example], variants: int) -> list[View]:
            return augment_examples(
                examples, variants, config.canvas, config.context, config.min_side, backbone.resolution, rng
            )

        views = augment_all(defective, config.encoded_variants)
        self.backbone, self.config, self.image_count = backbone, config, len(defective)
        self.normal_count = round(config.normal_fraction * config.batch_size) if normal else 0
        self.defect_views = encode_views(backbone, views, defects)
        self.canvas_masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
        self.normal_latents = self.defect_views.latents[:0]
        if self.normal_count:
            repeats = max(1, len(views) // len(normal))
            self.normal_latents = encode_views(backbone, augment_all(normal, repeats), defects).latents

    def sample_batch(self, size: int, normal_count: int, generator: torch.Generator) -> TrainingBatch:
        """Return a random batch of `size` images, the last `normal_count` of which are normal.

        A normal image replaces the latents of a defect view, and keeps the mask and defect of that view.
        """
        backbone, views, templates = self.backbone, self.defect_views, self.config.templates
        chosen = torch.randint(len(views.latents), (size,), generator=generator)
        noise = torch.randn(chosen.shape + views.latents.shape[1:], generator=generator)
        timesteps = torch.randint(len(backbone.alphas_cumprod), chosen.shape, generator=generator)
        template_indices = torch.randint(len(templates), chosen.shape, generator=generator).tolist()
        latents, is_defective = views.latents[chosen], torch.ones(len(chosen), dtype=torch.bool)
        if normal_count:
            rows = torch.randint(len(self.normal_latents), (normal_count,), generator=generator)
            latents = torch.cat([latents[:-normal_count], self.normal_latents[rows]])
            is_defective[-normal_count:] = False
        return TrainingBatch(
            to_denoiser(backbone, latents),
            to_denoiser(backbone, views.masks[chosen]),
            to_denoiser(backbone, self.canvas_masks[chosen].float()),
            views.defects[chosen],
            to_denoiser(backbone, noise),
            to_denoiser(backbone, timesteps),
            [templates[index] for index in template_indices],
            is_defective,
        )


def train_model(
    model: CADiffModel, views: TrainingViews, attention_side: int, seed: int, work_dir: Path, label: str
) -> dict[str, list[float]]:
    """Train the model and freeze it; seed, work_dir and label as in `train`.

    Returns:
        `loss` of every step, and `attention_iou` at `attention_side` before and after the training.
    """
    config = model.config

    compute = model.backbone.compute

    def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
        batch = views.sample_batch(config.batch_size, views.normal_count, generator)
        return model.part_losses(batch, generator, compute.accumulate, use_bf16=True)

    iou_before = attention_iou(model, views, attention_side, seed)
    if config.tune_denoiser:
        model.backbone.denoiser.requires_grad_(True)
    if compute.gradient_checkpointing:
        enable_gradient_checkpointing(model.backbone.denoiser, model.control.net)
    token_settings = {"learning_rate": config.token_learning_rate, "weight_decay": 0.0}
    training = TrainingConfig(
        training_steps(config, views.image_count),
        config.learning_rate,
        config.weight_decay,
        overrides={"tokens": token_settings},
        max_grad_norm=config.max_grad_norm,
        schedule=config.schedule,
        moments=config.moments,
    )
    losses = train(model, loss, training, seed=seed, work_dir=work_dir, label=label, compute=compute)
    freeze_in_half_precision(model)
    return {"loss": losses, "attention_iou": [iou_before, attention_iou(model, views, attention_side, seed)]}


def training_steps(config: CADiffConfig, image_count: int) -> int:
    """Return the optimiser steps: those of `epochs` over the defect images, or `steps`."""
    if config.epochs is None:
        return config.steps
    return config.epochs * math.ceil(image_count / config.batch_size)


@torch.no_grad()
def attention_iou(model: CADiffModel, views: TrainingViews, side: int, seed: int) -> float:
    """Return the mean IoU of masks and anomaly token attention in the layers of a side, with fixed noise."""
    count, size = min(EVALUATION_VIEWS, len(views.canvas_masks)), model.config.batch_size
    batch = views.sample_batch(count, 0, torch.Generator().manual_seed(seed))
    parts = [batch.select(start, start + size) for start in range(0, count, size)]
    maps = torch.cat([model.anomaly_attention(part, side) for part in parts])
    return round(float(map_mask_iou(maps, resize_mask(batch.masks, side)).mean()), 4)
