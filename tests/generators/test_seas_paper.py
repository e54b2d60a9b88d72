"""SeaS' form in the paper and in its public code: accumulation, refinement modules, steps, and over-fitting."""

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from plate_examples import DEFECTS
from tiny_seas import PAPER, QUICK, seas_examples
from tiny_unet import tiny_backbone
from toy_vae import ToyVAE

from defect_core.backbones.compute import ComputeConfig
from defect_core.diffusion.attention import control_attention
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_config
from defect_core.generators.seas import losses as seas_losses
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.generator import Seas
from defect_core.generators.seas.losses import MixedBatch, separation_and_sharing_loss
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt
from defect_core.generators.seas.refined_mask_prediction import MaskRefinementModule, RefinedMaskPrediction


def _batch(count):
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 8:32, 8:24] = 1
    latents, noise = torch.randn((2, 2 * count, 4, 8, 8), generator=generator)
    timesteps = torch.randint(1000, (2 * count,), generator=generator)
    return MixedBatch(latents, masks, ["dent", "scratch"] * (count // 2), noise, timesteps)


def test_accumulated_parts_have_the_gradient_of_the_batch(monkeypatch):
    """The form of the paper; the public form scales the maps over each part, as the public code does."""
    monkeypatch.setattr(seas_losses, "training_autocast", lambda *_, **__: nullcontext())
    backbone = tiny_backbone()
    config = SeasConfig(**PAPER, noise_weighting="noise")
    prompt = UnbalancedAbnormalPrompt.from_init_words(backbone, DEFECTS, config)
    control = control_attention(backbone.denoiser)
    trained = [*backbone.denoiser.requires_grad_(True).parameters(), *prompt.parameters()]

    def gradient(parts):
        batch = _batch(4)
        assert [len(part.defects) for part in batch.split(parts)] == [4 // parts] * parts
        for parameter in trained:
            parameter.grad = None
        for part in batch.split(parts):
            share = len(part.defects) / 4
            (separation_and_sharing_loss(backbone, prompt, control, [4], part, config).total * share).backward()
        return torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])

    whole, halves = gradient(1), gradient(2)
    assert torch.allclose(whole, halves, atol=1e-5) and float(whole.abs().max()) > 1e-3


@pytest.mark.parametrize("alignment", ["paper", "official"])
def test_gradient_checkpointing_works_while_attention_is_captured(alignment, tmp_path):
    """The gradient and the fit are those without checkpointing."""
    fits = []
    for enabled in (False, True):
        backbone = dataclasses.replace(tiny_backbone(), compute=ComputeConfig(gradient_checkpointing=enabled))
        config = SeasConfig(**{**QUICK, "alignment": alignment, "mask_layers": 0, "batch_size": 1})
        generator = Seas.create(config, backbone)
        generator.fit(seas_examples(), tmp_path / str(enabled), 1)
        is_enabled = [getattr(module, "gradient_checkpointing", False) for module in backbone.denoiser.modules()]
        assert any(is_enabled) == enabled
        fits.append(generator)
    plain, checkpointed = fits
    assert plain.training == checkpointed.training
    other = checkpointed.backbone.denoiser.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in plain.backbone.denoiser.state_dict().items())


def test_steps_per_defect_multiply_with_the_number_of_defects():
    assert SeasConfig(steps=700, mask_steps=150).steps_of(3) == (700, 150)
    assert generator_config("seas", {"variant": "paper"}).steps_of(3) == (2400, 2400)


def test_the_official_refinement_normalises_the_image_feature():
    """The public code multiplies by a feature without negative values, whatever its scale."""
    torch.manual_seed(0)
    feature, image_feature = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 8, 8)
    official = MaskRefinementModule(3, 8, False, "batch", True)
    assert (official.fine(image_feature) >= 0).all()
    assert torch.allclose(official(feature, image_feature), official(feature, 50 * image_feature), atol=1e-3)
    paper = MaskRefinementModule(3, 8, True, "batch", False)
    assert (paper.fine(image_feature) < 0).any()
    assert not torch.allclose(paper(feature, image_feature), paper(feature, 50 * image_feature), atol=1e-3)
    for refinement, is_official in (("paper", False), ("official", True)):
        config = SeasConfig(refinement=refinement, mask_norm="batch", mask_layers=0)
        module = RefinedMaskPrediction.for_backbone(tiny_backbone(), config).refinements[0]
        assert isinstance(module.fine, torch.nn.Sequential) == is_official
        assert any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())


def test_batch_norm_of_the_branch_is_saved_with_its_statistics(tmp_path):
    config = SeasConfig(**{**QUICK, "mask_norm": "batch", "refinement": "official", "variants": None})
    generator = Seas.create(config, tiny_backbone())
    generator.fit(seas_examples(), tmp_path / "work", 1)
    generator.save(tmp_path / "saved")
    loaded = Seas.load(tmp_path / "saved", tiny_backbone())
    state = generator.branch.state_dict()
    assert any(name.endswith("running_mean") and value.abs().max() > 0 for name, value in state.items())
    assert all(torch.equal(value, loaded.branch.state_dict()[name]) for name, value in state.items())
    assert not generator.branch.training and not loaded.branch.training


# over-fitting


def _block_example(defect, level, rows, columns):
    image, mask = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), bool)
    mask[rows, columns] = True
    image[mask] = level
    return Example("plate", defect, image, mask, f"{defect}/0.png")


@pytest.mark.slow
def test_overfitting_generates_the_defect_inside_its_mask_only(tmp_path):
    """Both halves of the loss fall, the mask branch finds the defect, and the normal prompt gives a normal image."""
    backbone = dataclasses.replace(tiny_backbone(), vae=ToyVAE().eval())
    config = SeasConfig(
        **{
            **PAPER,
            "alignment": "official",
            "balance": "equal",
            "augmentation": {"flips": False, "rotate90": False, "rotation": 0},
        },
        **{"steps": 350, "batch_size": 3, "variants": 1, "mask_steps": 60, "mask_layers": 1, "sampling_steps": 8},
        **{
            "learning_rate": 6e-3,
            "token_learning_rate": 2e-2,
            "guidance_scale": 1.0,
            "normal_guidance_scale": 1.0,
            "mask_learning_rate": 3e-3,
        },
        residual=False,
    )
    normal = Example("plate", "good", np.full((64, 64, 3), 128, np.uint8), None, "good/0.png")
    defect = _block_example("dent", 10, slice(16, 48), slice(16, 48))
    generator = Seas.create(config, backbone)
    generator.fit([normal, defect], tmp_path, 1)
    for name, fraction in (("loss", 0.5), ("mask_loss", 0.5)):
        values = generator.training[name]
        assert np.mean(values[-15:]) < fraction * np.mean(values[:5]), name
    requests = [SampleRequest(f"dent-{i}", "plate", "dent", i, normal.image, defect.mask) for i in range(4)]
    pairs = list(generator.sample(requests))
    images = np.stack([pair.image.astype(float) for pair in pairs])
    inside, outside = images[:, defect.mask].mean(), images[:, ~defect.mask].mean()
    assert inside < 90 and abs(outside - 128) < 25, (inside, outside)
    masks = np.stack([pair.mask for pair in pairs])
    overlap = (masks & defect.mask).sum() / (masks | defect.mask).sum()
    assert overlap > 0.5, overlap
    (made,) = generator.generate_normals([7], [normal.image])
    assert abs(made.astype(float)[defect.mask].mean() - 128) < 35


@pytest.mark.parametrize("reference", ["paper", "official"])
def test_the_extended_schedule_excludes_a_later_start(reference):
    with pytest.raises(ValueError, match=f"reference: {reference} starts at the last timestep"):
        SeasConfig(reference=reference, ref_strength=0.2)
