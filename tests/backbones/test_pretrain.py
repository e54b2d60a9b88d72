"""Pretraining: reproducible batches, an interrupted run equal to an unbroken one, an export that loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from defect_core.backbones import load_backbone, pretrain
from defect_core.backbones.architecture import LATENT_CHANNELS, alphas_cumprod

SCENES = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    pretrain.prepare(folder, SCENES)
    return folder


@pytest.fixture
def small(work: Path, tmp_path: Path) -> Path:
    """A work folder of its own that shares the prepared files."""
    for name in ("tokenizer", "vae", "corpus.safetensors"):
        (tmp_path / name).symlink_to(work / name)
    return tmp_path


def test_corpus_of_latents(work: Path) -> None:
    corpus = load_file(work / "corpus.safetensors")
    assert corpus["latents"].shape == (2 * SCENES, LATENT_CHANNELS, 16, 16)
    assert corpus["mask"].shape == (2 * SCENES, 1, 16, 16)
    assert corpus["caption"].shape == corpus["normal_caption"].shape == (2 * SCENES, 32)
    differs = (corpus["caption"] != corpus["normal_caption"]).any(1)
    assert torch.equal(differs, corpus["mask"].flatten(1).any(1))
    assert 0.8 < corpus["latents"].float().std() < 1.2


def test_batch_is_a_function_of_the_step(work: Path) -> None:
    first, again, other = (_batch(work, step) for step in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["noise"], other["noise"])


def test_holes_are_zero_and_carry_no_loss(work: Path) -> None:
    holes = 0
    for step in range(10):
        batch = _batch(work, step)
        empty = (batch["noisy"] == 0).all(1, keepdim=True)
        assert (batch["weight"][empty] == 0).all()
        assert (batch["weight"][~empty] > 0).all()
        holes += int(empty.flatten(1).any(1).sum())
    assert 10 < holes < 70  # of 160; 15 to 30 % by design


def test_rate_warms_up_stays_and_falls() -> None:
    rates = [pretrain._rate(step, 5000) for step in range(5000)]
    assert rates[0] < 0.01
    assert rates[200] == rates[3000] == 1
    assert rates[-1] == pytest.approx(0.02)


def test_interrupted_run_equals_an_unbroken_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    pretrain.train(small, 4)
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
            pretrain.train(small, 4)
    pretrain.train(small, 4)
    resumed = load_file(small / "checkpoint.safetensors")
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)


def test_export_loads(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "BATCH", 2)
    monkeypatch.setattr(pretrain, "EMBEDDED_FOLDER", tmp_path / "package")
    for _ in range(2):  # the second finds a folder to replace
        pretrain.main(["--work", str(small), "--steps", "1", "--export"])
    backbone = load_backbone(tmp_path / "package")
    stored = load_file(small / "checkpoint.safetensors")["average.denoiser.conv_in.weight"]
    assert torch.allclose(backbone.denoiser.conv_in.weight, stored, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("package")) == ["package"]


def _batch(work: Path, step: int) -> dict[str, torch.Tensor]:
    corpus = load_file(work / "corpus.safetensors")
    return pretrain._draw_batch(corpus, pretrain._empty_caption(work), alphas_cumprod(), step)
