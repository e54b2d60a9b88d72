"""Training of the segmenter: the same number of steps and the same normal images for every arm."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from defect_core.errors import InputError
from defect_core.evaluation.batches import hold_out
from defect_core.evaluation.segmentation.augment import augment_batch
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import BatchPlan, Sample, plan_batches
from defect_core.evaluation.segmentation.model import Segmenter
from defect_core.evaluation.training import TrainedModel, Validation, train_model
from defect_core.metrics.curves import average_precision, ranking_curve
from defect_core.training.guard import note_batch

# A pretrained encoder is trained at a third of the decoder's learning rate.
ENCODER_RATE_DIVISOR = 3
TrainedSegmenter = TrainedModel[Segmenter]


def train_segmenter(
    real: Sequence[Sample],
    normal: Sequence[Sample],
    synthetic: Sequence[Sample],
    config: SegmenterConfig,
    seed: int,
    progress_label: str = "segment",
    device: str = "cpu",
    crops: int = 1,
) -> TrainedSegmenter:
    """Train a segmenter on real defects, normal images and synthetic defects.

    Two arms with the same seed start from the same weights and use the same normal images in the same batches (see
    `data.plan_batches`). The result is deterministic on a CPU for a fixed number of threads.

    Args:
        real: real training defects; the fraction `config.validation_fraction` is held out for validation.
        normal: normal training images, with masks that are all False.
        synthetic: synthetic defects; empty for the arm `real_only`.
        config: settings, the same for every arm.
        seed: decides the decoder's weights, the batches and the augmentation.
        progress_label: shown with the progress.
        device: torch device that trains.
        crops: number of samples of each image, in a row; those of one image are held out together.

    Returns:
        The trained models and the curve, with the validation score `val_pixel_ap`.

    Raises:
        InputError: there is no defect to train on, or an image has another size than `config.image_size`.
    """
    size = _check_samples(real, normal, synthetic, config.image_size)
    train_real, held_real = _hold_out_images(real, config.validation_fraction, crops)
    # At most as many normal images as defects are held out.
    held_fraction = min(config.validation_fraction, len(held_real) / max(1, len(normal)))
    train_normal, held_normal = _hold_out_images(normal, held_fraction, crops)
    pools = [_stack(s, size).to(device) for s in (train_normal, train_real, synthetic)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(config)
    model = model.to(device).train()
    optimiser = _make_optimiser(model, config)
    generator = torch.Generator().manual_seed(seed + 1)

    def losses() -> Iterator[Tensor]:
        for plan in _noted(plan_batches(config, len(train_normal), len(train_real), len(synthetic), seed)):
            batch = torch.cat([pool[rows] for pool, rows in zip(pools, plan, strict=True) if rows]).float()
            images, masks = augment_batch(batch[:, :3], batch[:, 3:], generator)
            yield segmentation_loss(model(images), masks)

    held = [*held_real, *held_normal]
    return train_model(
        model,
        losses(),
        optimiser,
        steps=config.steps,
        label=progress_label,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle(step, config.steps)),
        validation=Validation("val_pixel_ap", lambda: _pixel_ap(model, held)) if held_real else None,
    )


def _noted(plans: Iterable[BatchPlan]) -> Iterator[BatchPlan]:
    """Yield the rows of each batch, and record them for the error of the numerical guard."""
    for plan in plans:
        for kind, rows in zip(("normal", "real", "synthetic"), plan, strict=True):
            note_batch(f"{kind} training image {row}" for row in rows)
        yield plan


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return focal loss (gamma 2) per defect pixel plus 1 - Dice, both over all pixels of the batch.

    The focal sum is divided by the defect area as in Lin et al. 2017, "Focal Loss for Dense Object Detection", section
    4. Defects cover a few thousandths of an image, so that a mean over all pixels trains slowly. Dice is computed over
    the batch, because it is not defined on a normal image.

    Args:
        logits: `[B,1,H,W]`.
        masks: `[B,1,H,W]` in 0..1.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    area = masks.sum() + 1
    focal = ((probability - masks).square() * entropy).sum() / area
    dice = (2 * (probability * masks).sum() + 1) / (probability.sum() + area)
    return focal + 1 - dice


def _hold_out_images(samples: Sequence[Sample], fraction: float, crops: int) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the validation part of samples, of which `crops` in a row belong to one image."""
    images = [samples[start : start + crops] for start in range(0, len(samples), crops)]
    training, held = hold_out(images, fraction)
    return [sample for image in training for sample in image], [sample for image in held for sample in image]


def _one_cycle(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up over a tenth of the steps, then a cosine to nearly 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _stack(samples: Sequence[Sample], size: int) -> Tensor:
    """Return uint8 `[N,4,S,S]`: image and mask together, so that one index selects both."""
    if not samples:
        return torch.zeros((0, 4, size, size), dtype=torch.uint8)
    both = [np.concatenate([s.image, s.mask[..., None].astype(np.uint8)], axis=2) for s in samples]
    return torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2).contiguous()


def _pixel_ap(model: Segmenter, samples: Sequence[Sample]) -> float | None:
    maps = model.predict(np.stack([s.image for s in samples]))
    return average_precision(ranking_curve(maps, np.stack([s.mask for s in samples])))


def _check_samples(
    real: Sequence[Sample], normal: Sequence[Sample], synthetic: Sequence[Sample], image_size: int | str
) -> int:
    """Return the side of the training images, after a check of their shapes."""
    if not isinstance(image_size, int):
        raise InputError(f"segment.image_size: {image_size}; expected the side of the training images")
    if not real and not synthetic:
        raise InputError("segment: no real and no synthetic defect image; expected at least one")
    shape = (image_size, image_size)
    for sample in (*real, *normal, *synthetic):
        if sample.image.shape != (*shape, 3) or sample.mask.shape != shape:
            raise InputError(
                f"segment: image of shape {sample.image.shape} with a mask of shape {sample.mask.shape}; "
                f"expected {(*shape, 3)} and {shape}"
            )
    return image_size


def _make_optimiser(model: Segmenter, config: SegmenterConfig) -> torch.optim.Optimizer:
    encoder = {id(p) for p in model.encoder.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    divisor = ENCODER_RATE_DIVISOR if model.pretrained else 1
    groups = [
        {"params": [p for p in trained if id(p) in encoder], "lr": config.learning_rate / divisor},
        {"params": [p for p in trained if id(p) not in encoder], "lr": config.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
