"""CADiff on a tiny backbone: what is trained, and the loss of a training step (eq. 8)."""

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tiny_cadiff import QUICK, cadiff_examples, training_batch, wake_up
from tiny_unet import WIDTH, tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.schedule import add_noise
from defect_core.errors import InputError
from defect_core.generators.cadiff.config import CADiffConfig
from defect_core.generators.cadiff.generator import CADiff
from defect_core.generators.cadiff.model import CADiffModel, token_groups
from defect_core.training.loop import TrainingConfig, train


@pytest.fixture(scope="module")
def examples():
    return cadiff_examples()


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def _noised(model, batch):
    return add_noise(batch.latents, batch.noise, model.backbone.alphas_cumprod[batch.timesteps])


# What is trained


def test_fit_changes_only_the_tokens_and_the_control_branch(backbone, examples, tmp_path):
    networks = (backbone.denoiser, backbone.text_encoder, backbone.vae)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    generator = CADiff.create(CADiffConfig(**QUICK), backbone)
    generator.fit(examples, tmp_path, seed=1)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    fresh = CADiffModel(backbone, generator.config, 2, seed=1)
    assert set(generator.model.tokens.names) == {"context", "anomaly_0", "anomaly_1"}
    for name in fresh.tokens.names:
        assert generator.model.tokens[name].shape == (1, WIDTH)
        assert not torch.equal(generator.model.tokens[name], fresh.tokens[name])
    assert generator.model.control.net.controlnet_mid_block.weight.abs().max() > 0
    assert set(generator.model.state_dict()) == set(fresh.state_dict())
    assert not any("denoiser" in name for name in fresh.state_dict())


def test_all_tokens_are_initialised_with_the_word_anomaly(backbone):
    model = CADiffModel(backbone, CADiffConfig(), 2, seed=1)
    ids = backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"]
    expected = backbone.text_encoder.get_input_embeddings().weight[ids].mean(0)
    assert all(torch.allclose(model.tokens[name][0], expected) for name in model.tokens.names)


def test_with_tune_denoiser_the_unet_is_trained_and_saved(examples, tmp_path):
    backbone = tiny_backbone()
    before = copy.deepcopy(backbone.denoiser.state_dict())
    generator = CADiff.create(CADiffConfig(**{**QUICK, "tune_denoiser": True}, learning_rate=1e-2), backbone)
    generator.fit(examples, tmp_path / "work", seed=1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in backbone.denoiser.state_dict().items())
    generator.save(tmp_path / "saved")
    loaded = tiny_backbone()
    CADiff.load(tmp_path / "saved", loaded)
    state = loaded.denoiser.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.denoiser.state_dict().items())


def test_normal_images_replace_defect_images_and_keep_their_masks(examples, tmp_path, monkeypatch):
    batches, loss = [], CADiffModel.part_losses

    def record(model, batch, *args, **kwargs):
        batches.append(batch)
        return loss(model, batch, *args, **kwargs)

    monkeypatch.setattr(CADiffModel, "part_losses", record)
    config = CADiffConfig(**{**QUICK, "batch_size": 4}, normal_fraction=0.5, canvas="whole")
    generator = CADiff.create(config, tiny_backbone())
    generator.fit(examples, tmp_path / "both", seed=1)
    assert len(batches) == QUICK["steps"]
    assert all(batch.is_defective.tolist() == [True, True, False, False] for batch in batches)
    assert all(batch.masks.flatten(1).sum(1).min() > 0 for batch in batches)
    batches.clear()
    generator.fit([example for example in examples if example.mask is not None], tmp_path / "none", seed=1)
    assert all(batch.is_defective.all() for batch in batches)


def test_fit_needs_defect_examples_and_a_prompt_that_fits(backbone, examples, tmp_path):
    with pytest.raises(InputError, match="no defect examples to learn from"):
        CADiff.create(CADiffConfig(**QUICK), backbone).fit(examples[:1], tmp_path, seed=1)
    generator = CADiff.create(CADiffConfig(**QUICK), tiny_backbone(length=7))
    with pytest.raises(InputError, match="expected a shorter prompt"):
        generator.fit(examples, tmp_path, seed=1)


# The loss


def test_without_regularisation_the_loss_is_controlnet_with_textual_inversion(backbone):
    config = CADiffConfig(localising_weight=0, contrast_weight=0, balance="image")
    model, batch = CADiffModel(backbone, config, 2, seed=1), training_batch()
    with torch.no_grad():
        loss = model.loss(batch, torch.Generator())
        text = model.encode(batch.templates, [[0], [1]]).states
        noised, hint = _noised(model, batch), batch.canvas_masks.expand(-1, 3, -1, -1)
        down, mid = model.control.net(noised, batch.timesteps, text, hint, return_dict=False)
        predicted = backbone.denoiser(
            noised, batch.timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    assert float(loss) == pytest.approx(float(((predicted - batch.noise) ** 2).mean()), rel=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms(backbone):
    model = CADiffModel(backbone, CADiffConfig(localising_weight=0.7, contrast_weight=0.3), 2, seed=1)
    batch = training_batch()
    with torch.no_grad():
        terms = model.loss_terms(batch, torch.Generator().manual_seed(4))
        total = model.loss(batch, torch.Generator().manual_seed(4))
    assert terms.localising > 0 and terms.contrast > 0
    assert float(total) == pytest.approx(float(terms.noise + 0.7 * terms.localising + 0.3 * terms.contrast), rel=1e-6)


def test_the_contrastive_loss_compares_outputs_of_the_text_encoder(backbone):
    templates = ("a {context} has {anomaly}", "some {anomaly} is here on the {context}")
    model = CADiffModel(backbone, CADiffConfig(templates=templates, contrast_views=8), 2, seed=1)
    with torch.no_grad():
        loss = float(model._contrastive_loss(torch.Generator().manual_seed(0)))
    loss_of_equal_vectors = 7 * np.log(7 * 3)  # untrained tokens are equal; their outputs differ between templates
    assert loss != pytest.approx(loss_of_equal_vectors, rel=1e-4)


@pytest.mark.parametrize("weights", [{"localising_weight": 1.0, "contrast_weight": 0.0}, {"contrast_weight": 1.0}])
def test_both_regularisation_losses_have_gradients_for_all_tokens(backbone, weights):
    model = CADiffModel(backbone, CADiffConfig(**{"localising_weight": 0.0, **weights}), 2, seed=1)
    terms = model.loss_terms(training_batch(), torch.Generator().manual_seed(4))
    (terms.localising + terms.contrast).backward()
    assert all(vector.grad.abs().max() > 0 for vector in model.tokens.parameters())


def test_normal_images_have_intensity_zero_and_no_localising_loss(backbone):
    config = CADiffConfig(**QUICK, localising_weight=1.0, contrast_weight=0, balance="image", focus_threshold=0.0)
    model = CADiffModel(backbone, config, 2, seed=1)
    wake_up(model)
    batch = training_batch()
    mixed = batch._replace(is_defective=torch.tensor([True, False]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        defective_terms, mixed_terms = (model.loss_terms(each, generator) for each in (batch, mixed))
        first_terms = model.loss_terms(batch.select(0, 1), generator)
        encoded = model.encode(batch.templates, [[int(index)] for index in batch.defects])
        token = torch.zeros(encoded.states.shape[:2], dtype=torch.bool)
        token[1, encoded.spans[1]["anomaly_1"]] = True
        with ExitStack() as stack:
            model.reweight(stack, token, lambda side: 1 - resize_mask(batch.masks, side))
            expected = model.predict_noise(_noised(model, batch), batch.timesteps, encoded.states, batch.canvas_masks)
    assert torch.allclose(mixed_terms.noise, noise_loss(batch.noise, expected), atol=1e-6)
    assert not torch.allclose(mixed_terms.noise, defective_terms.noise, atol=1e-6)
    assert torch.allclose(mixed_terms.localising, first_terms.localising, atol=1e-5)


def _fraction_of_attention_in_mask(model, batch):
    """Return the fraction of the |M| most attended positions that are in the mask, for the anomaly tokens at side 8."""
    names = [[f"anomaly_{index}"] for index in batch.defects.tolist()]
    with torch.no_grad():
        encoded = model.encode(batch.templates, [[index] for index in batch.defects.tolist()])
        groups = token_groups(encoded, names)
        with control_attention(model.backbone.denoiser).capture(groups, sides={8}) as maps:
            model.predict_noise(_noised(model, batch), batch.timesteps, encoded.states, batch.canvas_masks)
    inside = batch.masks[:, 0].flatten(1) > 0
    positions = maps.mean(8)[:, 0].flatten(1).topk(int(inside[0].sum())).indices
    return float(inside.gather(1, positions).float().mean())


def test_training_lowers_the_loss_and_moves_attention_into_the_mask(tmp_path):
    backbone = tiny_backbone()
    model = CADiffModel(backbone, CADiffConfig(localising_weight=1.0, tune_denoiser=True), 2, seed=1)
    backbone.denoiser.requires_grad_(True)
    one_defect = {"defects": torch.zeros(2, dtype=torch.int64), "timesteps": torch.tensor([100, 300])}
    batch = training_batch()._replace(**one_defect)
    before = _fraction_of_attention_in_mask(model, batch)
    losses = train(
        model,
        lambda step, generator: model.loss(batch, generator),
        TrainingConfig(60, 3e-3, 0.0, overrides={"tokens": {"learning_rate": 1e-1}}),
        seed=1,
        work_dir=tmp_path,
        label="learning",
    )
    after = _fraction_of_attention_in_mask(model, batch)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert before < 0.6 and after > 0.9
