"""Training of the segmenter: one short recipe, the same number of steps and of good images for every arm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from defect_core.errors import InputError
from defect_core.evaluation.segmentation.augment import augment_batch
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample, batch_plans, hold_out
from defect_core.evaluation.segmentation.model import Segmenter
from defect_core.metrics.localisation import average_precision, ranking_curve
from defect_core.progress import track

CURVE_POINTS = 10


@dataclass(frozen=True)
class TrainedSegmenter:
    """The model of the last step, in eval mode, and what was seen on the way.

    `curve` has one dict per point: `step` (1-based), `loss` (mean since the point before) and, where some real
    training defects could be held out, `val_pixel_ap` on them. `best` is the model of the point with the highest
    `val_pixel_ap` (the earliest of equals), None without a held-out slice; no test image has a say in it.
    """

    model: Segmenter
    curve: list[dict]
    best: Segmenter | None = None


def train_segmenter(
    real: Sequence[Sample],
    good: Sequence[Sample],
    synthetic: Sequence[Sample],
    config: SegmenterConfig,
    seed: int,
    progress_label: str = "segment",
    device: str = "cpu",
) -> TrainedSegmenter:
    """Train on real defects, good images and, where given, synthetic defects.

    Two arms with the same seed see the same good images in the same batches and start from the same weights;
    see `data.batch_plans`. Deterministic on a CPU for a fixed number of threads. The loss is focal plus
    Dice; AdamW with a one-cycle rate.

    Args:
        real: real training defects; a slice `config.validation_fraction` is held out for the curve.
        good: good training images (masks all False).
        synthetic: synthetic defects; empty for the real-only arm.
        config: the settings, the same for every arm.
        seed: decides weights of the decoder, batches and augmentation.
        progress_label: shown with the progress.
        device: torch device that trains.

    Raises:
        InputError: no defect image to learn from, or an image of another size than `config.image_size`.
    """
    if not real and not synthetic:
        raise InputError("segment: no real and no synthetic defect image; expected at least one")
    size = config.image_size
    for sample in (*real, *good, *synthetic):
        if sample.image.shape != (size, size, 3) or sample.mask.shape != (size, size):
            raise InputError(f"segment: image of shape {sample.image.shape}; expected ({size}, {size}, 3)")
    train_real, val_real = hold_out(real, config.validation_fraction)
    train_good, val_good = hold_out(good, min(config.validation_fraction, len(val_real) / max(1, len(good))))
    pools = [_stack(s, size).to(device) for s in (train_good, train_real, synthetic)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(config)
    model = model.to(device).train()
    encoder = {id(p) for p in model.network.encoder.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    # a pretrained encoder needs no more than a third of the rate
    slower = 3 if model.pretrained else 1
    groups = [
        {"params": [p for p in trained if id(p) in encoder], "lr": config.learning_rate / slower},
        {"params": [p for p in trained if id(p) not in encoder], "lr": config.learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle(step, config.steps))
    generator = torch.Generator().manual_seed(seed + 1)
    points = {config.steps * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)}
    curve: list[dict] = []
    losses: list[float] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    plans = batch_plans(config, len(train_good), len(train_real), len(synthetic), seed)
    for step, plan in enumerate(track(plans, progress_label, total=config.steps), start=1):
        batch = torch.cat([pool[rows] for pool, rows in zip(pools, plan, strict=True) if rows]).float()
        images, masks = augment_batch(batch[:, :3], batch[:, 3:], generator)
        loss = segmentation_loss(model(images), masks)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate.step()
        losses.append(loss.item())
        if step in points:
            point = {"step": step, "loss": round(float(np.mean(losses)), 5)}
            losses = []
            value = _validate(model, [*val_real, *val_good]) if val_real else None
            curve.append(point | ({"val_pixel_ap": round(value, 5)} if value is not None else {}))
            if value is not None and (best is None or value > best[0]):
                best = value, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            model.train()
    chosen = None
    if best is not None:
        chosen = Segmenter(config, pretrained=False)
        chosen.load_state_dict(best[1])
        chosen = chosen.to(device).eval()
    return TrainedSegmenter(model.eval(), curve, chosen)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss (gamma 2) per defect pixel plus 1 - Dice, both over all pixels of the batch.

    The focal sum is divided by the defect area and not by the number of pixels: defects cover a few thousandths
    of an image, and a plain mean spends the first hundred steps on learning that everything is normal. The Dice
    is taken over the batch because half of the images are good and have none of their own.
    Source of the focal term: Lin et al., "Focal Loss for Dense Object Detection", eq. 4 and its normalisation.
    Shape: `[B,1,H,W]` logits and masks in 0..1 -> scalar.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    area = masks.sum() + 1
    focal = ((probability - masks).square() * entropy).sum() / area
    dice = (2 * (probability * masks).sum() + 1) / (probability.sum() + area)
    return focal + 1 - dice


def _one_cycle(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to nearly zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _stack(samples: Sequence[Sample], size: int) -> Tensor:
    """uint8 `[N,4,S,S]`: image and mask together, so that one index picks both."""
    if not samples:
        return torch.zeros((0, 4, size, size), dtype=torch.uint8)
    both = [np.concatenate([s.image, s.mask[..., None].astype(np.uint8)], axis=2) for s in samples]
    return torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2).contiguous()


def _validate(model: Segmenter, samples: Sequence[Sample]) -> float | None:
    maps = model.predict(np.stack([s.image for s in samples]))
    return average_precision(ranking_curve(maps, np.stack([s.mask for s in samples])))
