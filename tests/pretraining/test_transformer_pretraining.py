"""Pretraining of the embedded transformer: initial weights, conditions of the corpus, exact resume, export."""

import pytest
import torch
from safetensors.torch import load_file

from defect_core.generators.defectdiffu.text import HASHED_WIDTH, HashedTextEncoder, encode_conditions
from defect_core.generators.defectdiffu.weights import load_transformer
from defect_core.pretraining import transformer as pretraining
from defect_core.pretraining.architecture import LATENT_CHANNELS, alphas_cumprod


@pytest.fixture
def _small(monkeypatch):
    """Make the transformer small, and its training save a checkpoint at every step."""
    for name, value in {"WIDTH": 72, "HEADS": 2, "DEPTH": 3, "BATCH_SIZE": 2, "CHECKPOINT_EVERY_S": -1.0}.items():
        monkeypatch.setattr(pretraining, name, value)


@torch.no_grad()
def test_the_initial_transformer_is_near_the_identity():
    noise = torch.randn((4, LATENT_CHANNELS, 16, 16), generator=torch.Generator().manual_seed(0))
    conditions = encode_conditions(HashedTextEncoder(), [("gear", "scratch")] * 4)
    output = pretraining.build_transformer()(noise, torch.full((4,), 999), conditions)
    assert float(((output.noise - noise) ** 2).mean()) < 0.1
    assert float(output.variance.abs().max()) == 0


def test_the_corpus_has_product_and_defect_names(work, corpus):
    names = pretraining.read_condition_names(work, corpus)
    assert [defect != "good" for _, defect in names] == corpus.mask.flatten(1).any(1).tolist()
    assert all(product and defect and not product.startswith("a ") for product, defect in names)


def test_black_and_white_have_different_latents(corpus):
    black, white = pretraining.encode_black_and_white(corpus)
    assert not torch.allclose(black, white, atol=1.0)


@pytest.mark.usefixtures("_small")
def test_an_interrupted_training_equals_an_uninterrupted_one(work, scenes, monkeypatch):
    pretraining.train(work, scenes, 4)
    uninterrupted = load_file(work / pretraining.CHECKPOINT)
    (work / pretraining.CHECKPOINT).unlink()
    original = pretraining._make_batch

    def stop_at_step_2(*args):
        if args[-1] == 2:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_make_batch", stop_at_step_2)
        with pytest.raises(KeyboardInterrupt):
            pretraining.train(work, scenes, 4)
    pretraining.train(work, scenes, 4)
    resumed = load_file(work / pretraining.CHECKPOINT)
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


@pytest.mark.usefixtures("_small")
def test_the_exported_folder_loads(work, scenes, tmp_path):
    pretraining.train(work, scenes, 4)
    average = load_file(work / pretraining.CHECKPOINT)["average.mask_head.layers.1.weight"]
    pretraining.export(work, tmp_path / "embedded")
    loaded = load_transformer(str(tmp_path / "embedded"), HASHED_WIDTH)
    assert torch.allclose(loaded.model.mask_head.layers[1].weight, average, atol=1e-3)
    assert torch.allclose(loaded.schedule.alphas_cumprod.float(), alphas_cumprod(), rtol=1e-4)
