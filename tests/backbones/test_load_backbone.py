"""Loading of backbone folders: names, layouts, digests, and one-line errors for incomplete or damaged folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sd_layout import write_tiny_backbone, write_tiny_ldm_backbone

from defect_core.backbones import load_backbone
from defect_core.diffusion.tokens import encode_prompts, token_embedding
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_class, generator_config


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("store") / "owner" / "model-v1")


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def test_a_folder_loads_encodes_and_decodes(stored: Path) -> None:
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
    assert torch.allclose(backbone.alphas_cumprod, torch.cumprod(1 - betas, 0))


def test_dtype_is_applied(stored: Path) -> None:
    backbone = load_backbone(stored, dtype=torch.bfloat16)
    assert backbone.encode(torch.zeros(1, 3, 64, 64)).dtype == torch.bfloat16
    assert backbone.to(dtype=torch.float32).encode_text([""]).dtype == torch.float32


def test_latents_are_normalised_per_channel(folder: Path) -> None:
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


@pytest.mark.parametrize("name", ["owner/model-v1", "elsewhere/model-v1"])
def test_a_hub_name_is_looked_up_in_the_weights_folder(
    stored: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = stored.parent.parent if name.startswith("owner") else stored.parent
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(root))
    assert load_backbone(name).folder == stored


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_the_error_names_the_missing_part(folder: Path, part: str) -> None:
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
    weights = load_file(path)
    incomplete = dict(sorted(weights.items())[1:])
    save_file(incomplete, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{file.split('/')[0]}/ cannot be loaded"):
        load_backbone(folder)
    path.write_bytes(b"\x10" * 100)
    with pytest.raises(InputError, match=rf"{file.split('/')[0]}/ cannot be loaded") as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_inpainting_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unet/ has 9 input channels and vae/ has 4 latent channels"):
        load_backbone(write_tiny_backbone(tmp_path / "wide", in_channels=9))


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/folder", "a/b/c"])
def test_an_invalid_name_is_refused_without_network_access(name: str) -> None:
    with pytest.raises(InputError, match="no such folder; expected 'embedded', a hub name, or a folder"):
        load_backbone(name)


def test_a_failed_download_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="the download from the hub failed \\(OSError\\)") as caught:
        load_backbone("owner/unknown")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"patch_size": 0}', '{"patch_size": "8"}', "[", "[]"])
def test_bad_patch_size_is_refused(folder: Path, content: str) -> None:
    (folder / "defectory.json").write_text(content)
    with pytest.raises(InputError, match="patch_size"):
        load_backbone(folder)


def test_the_digest_depends_on_the_weights_not_the_path(stored: Path, folder: Path) -> None:
    first = load_backbone(stored).digest
    assert load_backbone(folder).digest == first
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert load_backbone(folder).digest != first


def test_a_folder_in_ldm_layout_encodes_text_and_learned_tokens(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_ldm_backbone(tmp_path / "ldm"))
    plain = backbone.encode_text(["a photo of the anomaly"])
    assert plain.shape == (1, 77, 16) and backbone.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    table = token_embedding(backbone).weight
    embedding = table[backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"]]
    inserted = encode_prompts(backbone, ["a photo of the {thing}"], [{"thing": embedding}])
    assert inserted.spans == [{"thing": slice(5, 6)}] and torch.allclose(inserted.states, plain, atol=1e-5)
    other = encode_prompts(backbone, ["a photo of the {thing}"], [{"thing": embedding.flip(-1) + table[0]}])
    assert not torch.allclose(other.states, plain, atol=1e-3)
    backbone.save(tmp_path / "again")
    assert load_backbone(tmp_path / "again").resolution == backbone.resolution


def test_anomaly_diffusion_fits_and_samples_in_ldm_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(100, 150, (64, 64, 3), np.uint8), np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    example = Example("plate", "dent", np.where(mask[..., None], 230, image).astype(np.uint8), mask, "0.png")
    settings = {"steps": 2, "variants": 1, "batch_size": 2, "sampling_steps": 2, "encoder": {"side": 32}}
    generator = generator_class("anomaly-diffusion").create(
        generator_config("anomaly-diffusion", settings), load_backbone(write_tiny_ldm_backbone(tmp_path / "ldm"))
    )
    generator.fit([example], tmp_path / "work", seed=0)
    (pair,) = generator.sample([SampleRequest("dent-0", "plate", "dent", 0, image, mask)])
    assert (pair.image[mask] != image[mask]).any() and (pair.image[~mask] == image[~mask]).all()


def test_the_error_for_an_ldm_layout_uses_its_folder_names(tmp_path: Path) -> None:
    folder = write_tiny_ldm_backbone(tmp_path / "ldm")
    (folder / "bert" / "config.json").unlink()
    with pytest.raises(InputError, match=r"bert/config.json is missing"):
        load_backbone(folder)
