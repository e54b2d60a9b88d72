"""Pretraining: reproducible batches, an interrupted run equal to an unbroken one, an export that loads."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from defect_core.backbones import load_backbone
from defect_core.backbones.architecture import LATENT_CHANNELS, alphas_cumprod
from defect_core.pretraining import backbone as pretrain
from defect_core.pretraining import corpus_store as drawn_corpus
from defect_core.pretraining.corpus_store import Corpus, prepared
from defect_core.pretraining.learner import Learner

SCENES = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with prepared(folder, SCENES):
        pass
    return folder


@pytest.fixture
def small(work: Path, tmp_path: Path) -> Path:
    """A work folder of its own that shares the prepared files."""
    for name in ("tokenizer", "vae", "corpus"):
        (tmp_path / name).symlink_to(work / name)
    return tmp_path


@pytest.fixture
def corpus(work: Path) -> Corpus:
    made = Corpus(work, SCENES, torch.device("cpu"))
    made.grow()
    return made


def test_corpus_of_latents(corpus: Corpus) -> None:
    assert len(corpus) == len(corpus.caption) == len(corpus.normal_caption) == 2 * SCENES
    latents, mask = corpus.latents(torch.arange(2 * SCENES))
    assert latents.shape == (2 * SCENES, LATENT_CHANNELS, 16, 16)
    assert mask.shape == (2 * SCENES, 1, 16, 16)
    differs = (corpus.caption != corpus.normal_caption).any(1)
    assert torch.equal(differs, corpus.mask.flatten(1).any(1))
    assert 0.8 < latents.std() < 1.2


def test_latents_are_those_of_the_autoencoder(corpus: Corpus, work: Path) -> None:
    """The corpus reads the linear encoder off; a first-eighth row is neither turned nor mirrored."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True).eval()
    folded = torch.nn.functional.pixel_unshuffle(corpus.images[:3].permute(0, 3, 1, 2).float() / 127.5 - 1, 8)
    with torch.no_grad():
        mean = vae.encode(folded).latent_dist.mean
    shape = (1, -1, 1, 1)
    wanted = (mean - torch.tensor(vae.config.latents_mean).reshape(shape)) / vae.config.latents_std[0]
    assert torch.allclose(corpus.encode(corpus.images[:3].permute(0, 3, 1, 2)), wanted, atol=2e-3)
    assert torch.equal(corpus.latents(torch.arange(24))[0][:3], corpus.encode(corpus.images[:3].permute(0, 3, 1, 2)))


def test_a_batch_meets_all_eight_poses_and_masks_turn_along(corpus: Corpus) -> None:
    row = int(corpus.mask.flatten(1).any(1).nonzero()[0])
    latents, mask = corpus.latents(torch.full((8,), row))
    assert len({tuple(pose.flatten().tolist()) for pose in latents}) == 8
    cells = corpus.mask[row].float()
    assert torch.equal(mask[1, 0], cells.rot90(1, (0, 1)))
    assert torch.equal(mask[6, 0], cells.rot90(2, (0, 1)).flip(1))


def test_a_step_meets_the_shards_of_its_time(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_corpus, "FIRST", 1)
    growing = Corpus(work, SCENES, torch.device("cpu"))
    growing.shards = [replace(growing.shards[0], end=SCENES)] * 3
    for step, met in ((0, 1), (drawn_corpus.GROWTH, 2), (10 * drawn_corpus.GROWTH, 3)):
        growing.grow(step)
        assert growing.read == met


def test_a_killed_drawing_goes_on_with_the_shards_that_are_missing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work, tmp_path / "again")
    [shard] = (tmp_path / "again" / "corpus").iterdir()
    drawn = shard.read_bytes()
    shard.unlink()
    with prepared(tmp_path / "again", SCENES) as pending:
        pending[shard].result()
    assert shard.read_bytes() == drawn
    with prepared(tmp_path / "again", SCENES) as pending:
        assert not pending


def test_batch_is_a_function_of_the_step(corpus: Corpus, work: Path) -> None:
    first, again, other = (_batch(corpus, work, step) for step in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["noise"], other["noise"])


def test_holes_are_zero_and_carry_no_loss(corpus: Corpus, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 16)
    holes = 0
    for step in range(10):
        batch = _batch(corpus, work, step)
        empty = (batch["noisy"] == 0).all(1, keepdim=True)
        assert (batch["weight"][empty] == 0).all()
        assert (batch["weight"][~empty] > 0).all()
        holes += int(empty.flatten(1).any(1).sum())
    assert 10 < holes < 70  # of 160; 15 to 30 % by design


def test_rate_warms_up_stays_and_falls() -> None:
    rates = [pretrain._rate(step, 9000) for step in range(9000)]
    assert rates[0] < 0.01
    assert rates[600] == rates[3000] == rates[5800] == 1
    assert rates[-1] == pytest.approx(0.02)


def test_interrupted_run_equals_an_unbroken_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    pretrain.train(small, SCENES, 4)
    unbroken = load_file(small / "checkpoint.safetensors")
    (small / "checkpoint.safetensors").unlink()

    class StopError(Exception):
        pass

    draw_batch = pretrain._draw_batch

    def stop_at_third(corpus, empty, alpha_bar, step):
        if step == 2:
            raise StopError
        return draw_batch(corpus, empty, alpha_bar, step)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "SAVE_EVERY_S", -1.0)
        patch.setattr(pretrain, "_draw_batch", stop_at_third)
        with pytest.raises(StopError):
            pretrain.train(small, SCENES, 4)
    pretrain.train(small, SCENES, 4)
    resumed = load_file(small / "checkpoint.safetensors")
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)


def test_a_checkpoint_holds_weights_their_average_and_moments_apart(
    small: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    torch.manual_seed(0)
    learner = Learner(pretrain._build(small), torch.device("cpu"))
    begun = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.step(_batch(corpus, small, 0), step=0, rate=1.0)
    learner.save(small, 1)
    stored = load_file(small / "checkpoint.safetensors")
    one_moment = sum(name.startswith("momentum.") for name in stored)
    assert one_moment > 100
    assert len(stored) == 2 * len(begun) + 2 * len(list(learner.model.parameters())) - one_moment
    moved = 0
    for name, first in begun.items():
        weight = stored[f"model.{name}"]
        assert torch.equal(weight, learner.model.state_dict()[name])
        if first.is_floating_point():  # the first step counts nine tenths
            assert torch.allclose(stored[f"average.{name}"], first.lerp(weight, 0.9), atol=1e-6), name
            moved += not torch.equal(first, weight)
    assert moved > 0.7 * len(begun)


def test_export_loads(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    monkeypatch.setattr(pretrain, "EMBEDDED_FOLDER", tmp_path / "package")
    for _ in range(2):  # the second finds a folder to replace
        pretrain.main(["--work", str(small), "--steps", "1", "--scenes", str(SCENES), "--export"])
    backbone = load_backbone(tmp_path / "package")
    stored = load_file(small / "checkpoint.safetensors")
    for name, weight in backbone.denoiser.state_dict().items():
        assert torch.allclose(weight, stored[f"average.denoiser.{name}"], atol=1e-3, rtol=1e-3), name
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("package")) == ["package"]


def _batch(corpus: Corpus, work: Path, step: int) -> dict[str, torch.Tensor]:
    return pretrain._draw_batch(corpus, pretrain._empty_caption(work), alphas_cumprod(), step)
