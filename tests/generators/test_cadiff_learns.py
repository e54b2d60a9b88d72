"""CADiff learns: the loss falls inside and outside the mask, and the strength moves a defect that is inside only."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_cadiff import training_batch
from tiny_unet import tiny_backbone

from defect_core.diffusion.losses import resize_mask
from defect_core.diffusion.samplers import make_ddim_step, sample
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.generators.cadiff.config import CADiffConfig
from defect_core.generators.cadiff.model import CADiffModel, TrainingBatch
from defect_core.generators.cadiff.sampling import ReweightedDenoiser, SamplePlan
from defect_core.generators.cadiff.training import training_steps
from defect_core.training.loop import TrainingConfig, train

SHIFT = 2.0  # of the first latent channel in a defect
TEMPLATE = "a photo of a {context} with {anomaly}"
NORMAL = torch.linspace(-0.5, 0.5, 8).expand(4, 8, 8)


def _canvas_masks(count, generator):
    masks = torch.zeros(count, 1, 64, 64)
    for mask in masks:
        top, left = (8 * torch.randint(0, 5, (2,), generator=generator)).tolist()
        mask[:, top : top + 24, left : left + 24] = 1
    return masks


def _batch(generator, count=6, normal_count=2):
    """Return images with one defect type, the last of them normal."""
    canvas_masks = _canvas_masks(count, generator)
    masks, is_defective = resize_mask(canvas_masks, 8), torch.arange(count) < count - normal_count
    latents = NORMAL.expand(count, -1, -1, -1).clone()
    latents[:, :1] += SHIFT * masks * is_defective[:, None, None, None]
    return TrainingBatch(
        latents,
        masks,
        canvas_masks,
        torch.zeros(count, dtype=torch.int64),
        torch.randn(latents.shape, generator=generator),
        torch.randint(1000, (count,), generator=generator),
        [TEMPLATE] * count,
        is_defective,
    )


@torch.no_grad()
def _errors(model):
    """Return the mean squared error of the predicted noise inside and outside the masks of defective images."""
    batch = _batch(torch.Generator().manual_seed(99), 8, 0)._replace(timesteps=torch.arange(100, 900, 100))
    noised = add_noise(batch.latents, batch.noise, model.backbone.alphas_cumprod[batch.timesteps])
    text = model.encode(batch.templates, [[0]] * 8).states
    squares = (batch.noise - model.predict_noise(noised, batch.timesteps, text, batch.canvas_masks)) ** 2
    inside, outside = ((squares * part).sum() / (4 * part.sum()) for part in (batch.masks, 1 - batch.masks))
    return float(inside), float(outside)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model after a short training, and its errors before and after."""
    backbone = tiny_backbone()
    config = CADiffConfig(localising_weight=0.1, contrast_weight=0.0, tune_denoiser=True, sampling_steps=12)
    model = CADiffModel(backbone, config, 1, seed=1)
    backbone.denoiser.requires_grad_(True)
    before = _errors(model)
    settings = TrainingConfig(130, 8e-3, 0.0, overrides={"tokens": {"learning_rate": 1e-1}})
    work = tmp_path_factory.mktemp("work")
    train(
        model, lambda _, generator: model.loss(_batch(generator), generator), settings, seed=2, work_dir=work, label=""
    )
    model.requires_grad_(False)
    return model, before, _errors(model)


@torch.no_grad()
def _sample(model, strength, **settings):
    """Return the change of the first channel inside the mask, and the mean absolute change outside."""
    model = copy.copy(model)
    model.config = model.config.model_copy(update=settings)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 24:48] = True
    nothing: Any = None
    plan = SamplePlan(nothing, [0], [strength], nothing, nothing, mask.numpy(), [mask.numpy()])
    trajectory = make_trajectory(model.backbone.alphas_cumprod, model.config.sampling_steps)
    noise, start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4)), trajectory.steps // 2
    latents = add_noise(NORMAL[None], noise, trajectory.alphas_cumprod[start][None])
    denoiser = ReweightedDenoiser(model, [plan], focus_side=8)
    latents = sample(latents, denoiser.predict_noise, trajectory, make_ddim_step(trajectory), path=range(start, -1, -1))
    change, inside = (latents - NORMAL)[0], resize_mask(mask[None, None].float(), 8)[0, 0] > 0
    return float(change[0, inside].mean()), float(change[:, ~inside].abs().mean())


@pytest.mark.slow
def test_the_loss_falls_inside_and_outside_the_mask(learned):
    _, before, after = learned
    print(before, after)
    assert after[0] < 0.5 * before[0] and after[1] < 0.5 * before[1]


@pytest.mark.slow
def test_the_defect_appears_inside_the_mask_and_not_outside(learned):
    inside, outside = _sample(learned[0], 1.0)
    assert inside > 0.3 * SHIFT and outside < 0.5 * inside


@pytest.mark.slow
def test_strength_is_a_dial(learned):
    """With `guidance`, every step of w makes the defect larger; without the defect's attention it disappears."""
    values = [_sample(learned[0], w, intensity="guidance") for w in (0.0, 0.5, 1.0, 1.5, 2.0)]
    attention = [_sample(learned[0], w, focus_threshold=0.0)[0] for w in (0.0, 1.0, 2.0)]
    print(values, attention)
    changes = [inside for inside, _ in values]
    assert all(b > a + 0.1 * SHIFT for a, b in pairwise(changes))
    assert changes[0] < 0.4 * changes[2]
    assert max(outside for _, outside in values[:4]) < 0.3 * SHIFT


def test_every_image_has_the_same_weight_whatever_the_size_of_its_defect():
    model = CADiffModel(tiny_backbone(), CADiffConfig(localising_weight=0, contrast_weight=0), 2, seed=1)
    batch = training_batch(2)
    masks = torch.zeros_like(batch.masks)
    masks[0, :, 0, 0] = masks[1, :, :, :6] = 1  # 1 cell and 48 cells
    batch = batch._replace(masks=masks)
    for row in (0, 1):
        predicted = batch.noise.clone()
        predicted[row] += masks[row]
        assert float(model._noise_loss(batch, predicted, batch)) == pytest.approx(1 / 4, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"balance": "image", "localising": "paper"}])
def test_the_losses_of_the_parts_of_a_batch_add_up(settings):
    model = CADiffModel(tiny_backbone(), CADiffConfig(contrast_weight=0.3, **settings), 2, seed=1)
    batch = training_batch(5)
    masks = batch.masks.clone()
    masks[1, :, :, 2:] = 0
    batch = batch._replace(masks=masks, is_defective=torch.tensor([True, True, True, False, False]))
    with torch.no_grad():
        whole = float(model.loss(batch, torch.Generator().manual_seed(1)))
        for count in (2, 5):
            parts = [float(part) for part in model.part_losses(batch, torch.Generator().manual_seed(1), count)]
            assert len(parts) == count and sum(parts) == pytest.approx(whole, rel=1e-4)


def test_epochs_are_passes_over_the_defect_images():
    config = CADiffConfig.model_validate({"variant": "paper"})
    assert training_steps(config, 33) == 1000 * 3 and training_steps(config, 32) == 1000 * 2
    assert training_steps(CADiffConfig(steps=7), 33) == 7
