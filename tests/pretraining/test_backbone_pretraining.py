"""Pretraining of the embedded backbone: reproducible batches, resumed runs, and an export that loads."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from defect_core.backbones import load_backbone
from defect_core.pretraining import backbone as pretraining
from defect_core.pretraining import corpus_store
from defect_core.pretraining.architecture import LATENT_CHANNELS, alphas_cumprod, build_denoiser
from defect_core.pretraining.corpus_store import Corpus, prepare_corpus
from defect_core.pretraining.learner import Learner, rate_factor


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the denoiser narrow and the batch small."""
    monkeypatch.setattr(pretraining, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretraining, "build_denoiser", partial(build_denoiser, widths=(112, 32, 32)))


def test_shapes_and_captions_of_the_corpus(corpus: Corpus, scenes: int) -> None:
    assert len(corpus) == len(corpus.caption) == len(corpus.normal_caption) == 2 * scenes
    latents, mask = corpus.latents(torch.arange(2 * scenes))
    assert latents.shape == (2 * scenes, LATENT_CHANNELS, 16, 16)
    assert mask.shape == (2 * scenes, 1, 16, 16)
    differs = (corpus.caption != corpus.normal_caption).any(1)
    assert torch.equal(differs, corpus.mask.flatten(1).any(1))
    assert 0.8 < latents.std() < 1.2


def test_corpus_latents_equal_those_of_the_autoencoder(corpus: Corpus, prepared: Path) -> None:
    """The first eighth of a batch is neither rotated nor mirrored."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(prepared / "vae", use_safetensors=True).eval()
    folded = torch.nn.functional.pixel_unshuffle(corpus.images[:3].permute(0, 3, 1, 2).float() / 127.5 - 1, 8)
    with torch.no_grad():
        mean = vae.encode(folded).latent_dist.mean
    shape = (1, -1, 1, 1)
    expected = (mean - torch.tensor(vae.config.latents_mean).reshape(shape)) / vae.config.latents_std[0]
    assert torch.allclose(corpus.encode(corpus.images[:3].permute(0, 3, 1, 2)), expected, atol=2e-3)
    assert torch.equal(corpus.latents(torch.arange(24))[0][:3], corpus.encode(corpus.images[:3].permute(0, 3, 1, 2)))


def test_a_batch_contains_all_eight_symmetries_of_image_and_mask(corpus: Corpus) -> None:
    row = int(corpus.mask.flatten(1).any(1).nonzero()[0])
    latents, mask = corpus.latents(torch.full((8,), row))
    assert len({tuple(pose.flatten().tolist()) for pose in latents}) == 8
    cells = corpus.mask[row].float()
    assert torch.equal(mask[1, 0], cells.rot90(1, (0, 1)))
    assert torch.equal(mask[6, 0], cells.rot90(2, (0, 1)).flip(1))


def test_the_number_of_shards_grows_with_the_step(prepared: Path, scenes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_store, "INITIAL_SHARDS", 1)
    growing = Corpus(prepared, scenes, torch.device("cpu"))
    growing.shards = [replace(growing.shards[0], end=scenes)] * 3
    for step, expected in ((0, 1), (corpus_store.STEPS_PER_SHARD, 2), (10 * corpus_store.STEPS_PER_SHARD, 3)):
        growing.load_shards(step)
        assert growing.loaded_shards == expected


def test_only_missing_shards_are_rendered_again(prepared: Path, scenes: int, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    [shard] = (tmp_path / "copy" / "corpus").iterdir()
    content = shard.read_bytes()
    shard.unlink()
    with prepare_corpus(tmp_path / "copy", scenes) as pending:
        pending[shard].result()
    assert shard.read_bytes() == content
    with prepare_corpus(tmp_path / "copy", scenes) as pending:
        assert not pending


def test_a_batch_is_a_function_of_the_step(corpus: Corpus, work: Path) -> None:
    first, again, other = (_batch(corpus, work, step) for step in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["noise"], other["noise"])


def test_latents_and_loss_weights_are_zero_in_holes(
    corpus: Corpus, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "BATCH_SIZE", 16)
    holes = 0
    for step in range(10):
        batch = _batch(corpus, work, step)
        empty = (batch["noisy"] == 0).all(1, keepdim=True)
        assert (batch["weight"][empty] == 0).all()
        assert (batch["weight"][~empty] > 0).all()
        holes += int(empty.flatten(1).any(1).sum())
    assert 10 < holes < 70  # of 160 images, 15 to 30 % have a hole


def test_the_learning_rate_warms_up_stays_constant_and_decays() -> None:
    factors = [rate_factor(step, 9000, warm_up=500, decay_fraction=0.35) for step in range(9000)]
    assert factors[0] < 0.01
    assert factors[600] == factors[3000] == factors[5800] == 1
    assert factors[-1] == pytest.approx(0.02)


@pytest.mark.usefixtures("small")
def test_a_resumed_run_equals_an_uninterrupted_one(work: Path, scenes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining.train(work, scenes, 4)
    uninterrupted = load_file(work / "checkpoint.safetensors")
    (work / "checkpoint.safetensors").unlink()

    class StopError(Exception):
        pass

    make_batch = pretraining._make_batch

    def stop_at_third_step(corpus, empty_caption, alpha_bars, step):
        if step == 2:
            raise StopError
        return make_batch(corpus, empty_caption, alpha_bars, step)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "CHECKPOINT_EVERY_S", -1.0)
        patch.setattr(pretraining, "_make_batch", stop_at_third_step)
        with pytest.raises(StopError):
            pretraining.train(work, scenes, 4)
    pretraining.train(work, scenes, 4)
    resumed = load_file(work / "checkpoint.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


@pytest.mark.usefixtures("small")
def test_a_checkpoint_contains_weights_their_average_and_moments(work: Path, corpus: Corpus) -> None:
    torch.manual_seed(0)
    learner = Learner(pretraining._build_model(work), torch.device("cpu"))
    initial = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.step(_batch(corpus, work, 0), step=0, rate_factor=1.0)
    learner.save(work, 1)
    stored = load_file(work / "checkpoint.safetensors")
    muon_weights = sum(name.startswith("momentum.") for name in stored)
    assert muon_weights > 100
    assert len(stored) == 2 * len(initial) + 3 * len(list(learner.model.parameters())) - 2 * muon_weights
    changed = 0
    for name, first in initial.items():
        weight = stored[f"model.{name}"]
        assert torch.equal(weight, learner.model.state_dict()[name])
        if first.is_floating_point():  # the first step has a weight of 0.9 in the average
            assert torch.allclose(stored[f"average.{name}"], first.lerp(weight, 0.9), atol=1e-6), name
            changed += not torch.equal(first, weight)
    assert changed > 0.7 * len(initial)


@pytest.mark.usefixtures("small")
def test_an_exported_folder_loads(work: Path, scenes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "EMBEDDED_FOLDER", tmp_path / "package")
    for _ in range(2):  # the second export replaces the folder of the first
        pretraining.main(["--work", str(work), "--steps", "1", "--scenes", str(scenes), "--export"])
    backbone = load_backbone(tmp_path / "package")
    stored = load_file(work / "checkpoint.safetensors")
    for name, weight in backbone.denoiser.state_dict().items():
        assert torch.allclose(weight, stored[f"average.denoiser.{name}"], atol=1e-3, rtol=1e-3), name
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("package")) == ["package"]


def _batch(corpus: Corpus, work: Path, step: int) -> dict[str, torch.Tensor]:
    return pretraining._make_batch(corpus, pretraining._empty_caption(work), alphas_cumprod(), step)
