"""SeaS on a tiny backbone: what is trained, the loss of separation and sharing fine-tuning, resuming."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from plate_examples import DEFECTS
from tiny_seas import PAPER, QUICK, seas_examples
from tiny_unet import tiny_backbone

from defect_core.backbones.compute import ComputeConfig
from defect_core.data.augment import augment_pair
from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import map_mask_iou
from defect_core.diffusion.tokens import token_embedding
from defect_core.errors import InputError
from defect_core.generators.seas import losses as seas_losses
from defect_core.generators.seas import training
from defect_core.generators.seas.config import RotateFlip, SeasConfig
from defect_core.generators.seas.generator import Seas
from defect_core.generators.seas.losses import MixedBatch, defect_noise_loss, separation_and_sharing_loss
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt
from defect_core.generators.seas.training import EVALUATION_TIMESTEPS, TrainingViews
from defect_core.generators.views import augment_options


@pytest.fixture(scope="module")
def examples():
    return seas_examples()


@pytest.fixture(scope="module")
def fitted(examples, tmp_path_factory):
    generator = Seas.create(SeasConfig(**QUICK), tiny_backbone())
    generator.fit(examples, tmp_path_factory.mktemp("work"), seed=1)
    return generator


def _batch(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 8:32, 8:24] = 1
    latents, noise = torch.randn((2, 2 * count, 4, 8, 8), generator=generator)
    timesteps = torch.randint(1000, (2 * count,), generator=generator)
    return MixedBatch(latents, masks, ["dent"] * count, noise, timesteps)


# What is trained


def test_fit_changes_tokens_and_unet_but_not_vocabulary_vae_and_text_encoder(fitted):
    fresh = tiny_backbone()
    assert torch.equal(token_embedding(fitted.backbone).weight, token_embedding(fresh).weight)
    for network in ("text_encoder", "vae"):
        before, after = getattr(fresh, network).state_dict(), getattr(fitted.backbone, network).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    initial = UnbalancedAbnormalPrompt.from_init_words(fresh, DEFECTS, fitted.config).tokens.embeddings
    assert all(not torch.equal(initial[name], rows) for name, rows in fitted.prompt.tokens.embeddings.items())
    assert initial["dent"].shape[0] == 4 and initial["good"].shape[0] == 1
    changed = [
        not torch.equal(before, after)
        for before, after in zip(fresh.denoiser.parameters(), fitted.backbone.denoiser.parameters(), strict=True)
    ]
    assert np.mean(changed) > 0.5


def test_select_returns_the_same_positions_of_defect_and_normal_images():
    batch = _batch(0, count=3)
    part = batch.select(1, 3)
    rows = [1, 2, 4, 5]
    assert torch.equal(part.latents, batch.latents[rows]) and torch.equal(part.timesteps, batch.timesteps[rows])
    assert torch.equal(part.noise, batch.noise[rows]) and torch.equal(part.masks, batch.masks[1:])
    assert part.defects == batch.defects[1:]


def test_gradients_of_defect_and_normal_images_add_up_and_are_independent(monkeypatch):
    monkeypatch.setattr(seas_losses, "training_autocast", lambda *_, **__: nullcontext())
    backbone = tiny_backbone()
    config = SeasConfig(**PAPER, noise_weighting="noise")
    prompt = UnbalancedAbnormalPrompt.from_init_words(backbone, DEFECTS, config)
    control = control_attention(backbone.denoiser)
    trained = [*backbone.denoiser.requires_grad_(True).parameters(), *prompt.parameters()]

    def gradients(loss):
        values = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(trained, values, strict=True)]
        )

    batch, other = _batch(0), _batch(1)
    terms = separation_and_sharing_loss(backbone, prompt, control, [4], batch, config)
    defect = gradients(terms.defect_noise + terms.anomaly_alignment)
    assert torch.allclose(gradients(terms.total), defect + gradients(terms.normal_alignment), atol=1e-5)
    mixed = MixedBatch(
        torch.cat([batch.latents[:2], other.latents[2:]]),
        batch.masks,
        batch.defects,
        torch.cat([batch.noise[:2], other.noise[2:]]),
        torch.cat([batch.timesteps[:2], other.timesteps[2:]]),
    )
    changed = separation_and_sharing_loss(backbone, prompt, control, [4], mixed, config)
    assert changed.normal_alignment != terms.normal_alignment
    assert torch.allclose(gradients(changed.defect_noise + changed.anomaly_alignment), defect, atol=1e-6)


def test_equal_balance_gives_a_small_defect_the_weight_of_its_background():
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :8, :16] = 1
    noise, predicted = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    predicted[..., 0, :2] = 2.0  # two of 64 positions, those of the mask
    values = [defect_noise_loss(noise, predicted, masks, SeasConfig(balance=balance)) for balance in ("equal", "image")]
    assert values == [pytest.approx(4 / 2), pytest.approx(4 * 2 / 64)]


def test_defect_images_come_first_and_normal_images_have_the_normal_prompt(fitted, examples):
    views = TrainingViews(fitted.backbone, fitted.config, examples[2:], examples[:2], 0)
    batch = views.sample_batch(3, 1000, torch.Generator().manual_seed(0))
    assert len(batch.latents) == 6 and len(batch.defects) == len(batch.masks) == 3
    assert all(any(torch.equal(row, known) for known in views.defective.latents) for row in batch.latents[:3])
    assert all(any(torch.equal(row, known) for known in views.normal.latents) for row in batch.latents[3:])
    prompts = fitted.prompt.encode(fitted.backbone, [("dent",), ()])
    assert prompts.spans == [{"product": slice(2, 3), "defect": slice(4, 8)}, {"product": slice(2, 3)}]


def test_overfitting_one_image_aligns_the_anomaly_tokens_with_its_mask(examples):
    backbone = tiny_backbone()
    config = SeasConfig(**{**PAPER, "alignment": "official"}, alignment_weight=5)
    prompt = UnbalancedAbnormalPrompt.from_init_words(backbone, DEFECTS, config)
    control = control_attention(backbone.denoiser)
    views = TrainingViews(backbone, config, examples[2:3], examples[:1], 0)
    optimizer = torch.optim.Adam([*backbone.denoiser.requires_grad_(True).parameters(), *prompt.parameters()], 3e-3)
    evaluation_batch = views.sample_batch(16, 200, torch.Generator().manual_seed(99))

    def measure():
        with torch.no_grad():
            terms = separation_and_sharing_loss(backbone, prompt, control, [4], evaluation_batch, config)
        return terms.anomaly_alignment.item(), map_mask_iou(terms.maps.anomaly[4], terms.masks[4]).mean().item()

    loss, iou = measure()
    for step in range(60):
        batch = views.sample_batch(4, 300, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        separation_and_sharing_loss(backbone, prompt, control, [4], batch, config).total.backward()
        optimizer.step()
    final_loss, final_iou = measure()
    assert final_loss < 0.6 * loss and final_iou > iou + 0.1, (loss, final_loss, iou, final_iou)


def test_augmentation_moves_image_and_mask_together_in_eight_ways():
    side = 8
    rows, columns = np.mgrid[:side, :side]
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    mask = np.random.default_rng(0).random((side, side)) < 0.3
    results = {}
    for seed in range(40):
        moved, moved_mask = augment_pair(image, mask, np.random.default_rng(seed), augment_options(RotateFlip(), image))
        assert (moved_mask == mask[moved[..., 0], moved[..., 1]]).all()
        results[moved.tobytes()] = moved
    assert len(results) == 8

    def repeat(moved, times):
        result = image
        for _ in range(times):
            result = result[moved[..., 0], moved[..., 1]]
        return result

    quarter_turns = [moved for moved in results.values() if not (repeat(moved, 2) == image).all()]
    assert len(quarter_turns) == 2
    assert all((repeat(moved, 4) == image).all() for moved in quarter_turns)


# Resuming and bad input


def test_a_fit_that_is_killed_in_either_stage_resumes_to_the_same_weights(examples, tmp_path, monkeypatch):
    config = SeasConfig(**{**QUICK, "steps": 5, "mask_steps": 4, "batch_size": 1, "mask_layers": 0})
    uninterrupted = Seas.create(config, tiny_backbone().configure(ComputeConfig(checkpoint_every=2)))
    uninterrupted.fit(examples, tmp_path / "uninterrupted", seed=1)

    def fit_until(name, last_call):
        """Fit, killed at this call of the loss `name` (None: never); return the generator and the number of calls."""
        calls, loss = [], getattr(training, name)

        def count_calls(*args, **kwargs):
            calls.append(name)
            if len(calls) == last_call:
                raise KeyboardInterrupt
            return loss(*args, **kwargs)

        generator = Seas.create(config, tiny_backbone().configure(ComputeConfig(checkpoint_every=2)))
        with monkeypatch.context() as patch:
            patch.setattr(training, name, count_calls)
            if last_call is not None:
                with pytest.raises(KeyboardInterrupt):
                    generator.fit(examples, tmp_path / "killed", seed=1)
            else:
                generator.fit(examples, tmp_path / "killed", seed=1)
        return generator, len(calls)

    evaluation = len(EVALUATION_TIMESTEPS) * len(DEFECTS) * config.variants  # calls of one `attention_iou`
    fit_until("separation_and_sharing_loss", evaluation + 4)  # in the fourth training step
    fit_until("refined_mask_prediction_loss", 4)
    resumed, steps = fit_until("refined_mask_prediction_loss", None)
    assert steps == 2 and fit_until("separation_and_sharing_loss", None)[1] == 2 * evaluation + 1
    assert resumed.training == uninterrupted.training
    for network in (lambda g: g.backbone.denoiser, lambda g: g.prompt, lambda g: g.branch):
        for name, tensor in network(uninterrupted).state_dict().items():
            assert torch.equal(tensor, network(resumed).state_dict()[name]), name


def test_fit_needs_defect_and_normal_examples(examples, tmp_path):
    generator = Seas.create(SeasConfig(**QUICK), tiny_backbone())
    with pytest.raises(InputError, match="seas: no normal examples to learn from"):
        generator.fit(examples[2:], tmp_path, seed=1)
    with pytest.raises(InputError, match="seas: no defect examples to learn from"):
        generator.fit(examples[:2], tmp_path, seed=1)
