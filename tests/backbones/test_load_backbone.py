"""Folders in Stable Diffusion's layout: found, loaded, digested, and refused in one line when something is amiss."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sd_layout import write_tiny, write_tiny_ldm

from defect_core.backbones import load_backbone
from defect_core.diffusion.tokens import encode_prompts, token_embedding
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_class, generator_config


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("store") / "maker" / "model-v1")


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def test_folder_loads_and_keeps_the_contract(stored: Path) -> None:
    backbone = load_backbone(stored)
    assert (backbone.resolution, backbone.latent_size, backbone.latent_channels) == (64, 8, 4)
    assert backbone.patch_size == 1
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = backbone.encode(images)
    mean = backbone.vae.encode(images).latent_dist.mean
    assert torch.allclose(latents, mean * 0.18215)
    assert torch.allclose(backbone.decode(latents), backbone.vae.decode(mean).sample.clamp(-1, 1), atol=1e-5)
    states = backbone.encode_text(["a scratch", ""])
    assert states.shape == (2, 77, 16)
    assert backbone.denoiser(latents, 10, states).sample.shape == latents.shape
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(backbone.schedule, torch.cumprod(1 - betas, 0))


def test_number_type_is_as_asked(stored: Path) -> None:
    backbone = load_backbone(stored, dtype=torch.bfloat16)
    assert backbone.encode(torch.zeros(1, 3, 64, 64)).dtype == torch.bfloat16
    assert backbone.to(dtype=torch.float32).encode_text([""]).dtype == torch.float32


def test_per_channel_normalisation(folder: Path) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    config |= {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0], "scaling_factor": 1.0}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(folder)
    images = torch.zeros(1, 3, 64, 64)
    mean = backbone.vae.encode(images).latent_dist.mean
    shape = (1, 4, 1, 1)
    expected = (mean - torch.tensor([1.0, 2, 3, 4]).reshape(shape)) / torch.tensor([0.5, 1, 2, 4]).reshape(shape)
    assert torch.allclose(backbone.encode(images), expected)
    assert torch.allclose(backbone.decode(expected), backbone.vae.decode(mean).sample.clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("name", ["maker/model-v1", "elsewhere/model-v1"])
def test_hub_name_is_looked_for_in_the_weights_folder(stored: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = stored.parent.parent if name.startswith("maker") else stored.parent
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(root))
    assert load_backbone(name).folder == stored


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=rf"{part}/\S+ is missing; expected vae/ unet/") as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_in_another_format_are_refused(folder: Path, file: str) -> None:
    (folder / f"{file}.safetensors").rename(folder / f"{file}.bin")
    with pytest.raises(InputError, match=rf"{file}.safetensors is missing"):
        load_backbone(folder)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_damaged_and_incomplete_weights_are_refused(folder: Path, file: str) -> None:
    path = folder / f"{file}.safetensors"
    whole = load_file(path)
    dropped = dict(sorted(whole.items())[1:])
    save_file(dropped, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{file.split('/')[0]}/ cannot be loaded"):
        load_backbone(folder)
    path.write_bytes(b"\x10" * 100)
    with pytest.raises(InputError, match=rf"{file.split('/')[0]}/ cannot be loaded") as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_inpainting_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unet/ takes 9 channels, vae/ makes 4"):
        load_backbone(write_tiny(tmp_path / "wide", in_channels=9))


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/folder", "a/b/c"])
def test_unknown_name_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(InputError, match="no such folder; expected 'embedded', a hub name, or a folder"):
        load_backbone(name)


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="the hub gave OSError") as caught:
        load_backbone("maker/unknown")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"patch_size": 0}', '{"patch_size": "8"}', "[", "[]"])
def test_bad_patch_size_is_refused(folder: Path, content: str) -> None:
    (folder / "defectory.json").write_text(content)
    with pytest.raises(InputError, match="patch_size"):
        load_backbone(folder)


def test_digest_follows_weights_not_place(stored: Path, folder: Path) -> None:
    first = load_backbone(stored).digest
    assert load_backbone(folder).digest == first
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert load_backbone(folder).digest != first


def test_a_folder_in_latent_diffusions_layout_encodes_text_and_takes_learned_words(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_ldm(tmp_path / "ldm"))
    plain = backbone.encode_text(["a photo of the anomaly"])
    assert plain.shape == (1, 77, 16) and backbone.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    table = token_embedding(backbone).weight
    word = table[backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"]]
    slotted = encode_prompts(backbone, ["a photo of the {thing}"], [{"thing": word}])
    assert slotted.spans == [{"thing": slice(5, 6)}] and torch.allclose(slotted.states, plain, atol=1e-5)
    other = encode_prompts(backbone, ["a photo of the {thing}"], [{"thing": word.flip(-1) + table[0]}])
    assert not torch.allclose(other.states, plain, atol=1e-3)
    backbone.save(tmp_path / "again")
    assert load_backbone(tmp_path / "again").resolution == backbone.resolution


def test_anomaly_diffusion_fits_and_draws_on_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(100, 150, (64, 64, 3), np.uint8), np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    example = Example("plate", "dent", np.where(mask[..., None], 230, image).astype(np.uint8), mask, "0.png")
    settings = {"steps": 2, "variants": 1, "batch_size": 2, "sampling_steps": 2, "encoder": {"side": 32}}
    made = generator_class("anomaly-diffusion").create(
        generator_config("anomaly-diffusion", settings), load_backbone(write_tiny_ldm(tmp_path / "ldm"))
    )
    made.fit([example], tmp_path / "work", seed=0)
    (pair,) = made.sample([SampleRequest("dent-0", "plate", "dent", 0, image, mask)])
    assert (pair.image[mask] != image[mask]).any() and (pair.image[~mask] == image[~mask]).all()


def test_a_part_missing_from_latent_diffusions_layout_is_called_by_its_own_name(tmp_path: Path) -> None:
    folder = write_tiny_ldm(tmp_path / "ldm")
    (folder / "bert" / "config.json").unlink()
    with pytest.raises(InputError, match=r"bert/config.json is missing"):
        load_backbone(folder)
