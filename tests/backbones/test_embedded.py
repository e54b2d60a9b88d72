"""The embedded weights are small, contain no pickle and are trained."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.pretraining.corpus import Scene, crop_view, render_scene

SIZE_LIMIT = 40_000_000  # bytes; all embedded weights together may have 60 MB
PSNR_BOUND = 35.0  # dB on unseen images of the corpus; MODEL_CARD.md has measured values


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    scenes = []
    for index in range(24):
        rng = np.random.default_rng([10**6, index])  # the pretraining uses other seeds
        scenes.append(crop_view(render_scene(rng), rng, local=index % 2 == 1))
    return scenes


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_folder_is_small_and_contains_safetensors_only() -> None:
    files = [path for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}


def test_attributes_and_noise_schedule(embedded: Backbone) -> None:
    assert (embedded.resolution, embedded.latent_size, embedded.patch_size) == (128, 16, 8)
    assert embedded.alphas_cumprod.shape == (1000,)
    assert (embedded.alphas_cumprod.diff() < 0).all()
    assert 0 < embedded.alphas_cumprod[-1] < 0.01 < 0.999 < embedded.alphas_cumprod[0] < 1
    assert not any(parameter.requires_grad for parameter in embedded.denoiser.parameters())
    assert embedded.digest == embedded.digest
    assert len(embedded.digest) == 64


def test_autoencoder_round_trip_has_a_high_psnr(embedded: Backbone, images: Tensor) -> None:
    latents = embedded.encode(images)
    assert latents.shape == (len(images), embedded.latent_channels, 16, 16)
    rebuilt = embedded.decode(latents)
    assert rebuilt.shape == images.shape
    assert rebuilt.abs().max() <= 1
    errors = (rebuilt - images).square().flatten(1).mean(1)
    psnr = 10 * torch.log10(4 / errors)
    assert float(psnr.mean()) > PSNR_BOUND


def test_leading_channels_have_the_largest_variance(embedded: Backbone, images: Tensor) -> None:
    deviations = embedded.encode(images).transpose(0, 1).flatten(1).std(1)
    assert 0.5 < deviations.square().mean() < 2.0
    assert deviations[0] == deviations.max() and deviations[0] > 2 * deviations[-1] > 0.2


def test_an_edit_changes_only_neighbouring_patches(embedded: Backbone, images: Tensor) -> None:
    """The pixel composite of the generators relies on this."""
    edited = images[:1].clone()
    edited[..., 64:72, 64:72] = -edited[..., 64:72, 64:72]
    has_changed = (embedded.decode(embedded.encode(edited)) - embedded.decode(embedded.encode(images[:1]))).abs() > 0.02
    assert has_changed[..., 64:72, 64:72].any()
    has_changed[..., 56:80, 56:80] = False
    assert not has_changed.any()


@pytest.mark.parametrize(
    "text", ["", "a photo of a screw", "ÄÖ ☃ 漢字 \x00\n\t", "1234567890 !!<>", "Supercalifragilistic", "a" * 500]
)
def test_text_embedding_does_not_depend_on_the_batch(embedded: Backbone, text: str) -> None:
    first, alone = embedded.encode_text([text, "a photo of a gear"]), embedded.encode_text([text])
    assert first.shape == (2, 32, 128)
    assert torch.isfinite(first).all()
    assert torch.allclose(first[0], alone[0], atol=1e-5)


def test_every_character_is_tokenised(embedded: Backbone) -> None:
    tokenizer = embedded.tokenizer
    for text in ("żółć", "☃", "漢字", "naïve—test", "".join(chr(c) for c in range(33, 127))):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert tokens
        assert tokenizer.unk_token_id not in tokens


def test_industrial_words_are_single_tokens(embedded: Backbone) -> None:
    for word in ("scratch", "screw", "hazelnut", "blowhole", "contamination", "transistor"):
        assert len(embedded.tokenizer.tokenize(word)) == 1


def test_different_prompts_have_different_embeddings(embedded: Backbone) -> None:
    states = embedded.encode_text(["a photo of a screw", "a photo of a scratch on a screw"])
    assert (states[0] - states[1]).abs().max() > 0.1


@pytest.mark.parametrize(("timestep", "max_error"), [(100, 0.5), (300, 0.28), (600, 0.11)])
def test_denoiser_predicts_the_noise(
    embedded: Backbone, scenes: list[Scene], images: Tensor, timestep: int, max_error: float
) -> None:
    """The noisy latents, scaled to unit variance, have errors of 7.4, 1.3 and 0.17; a prediction of zero has 1."""
    alpha_bar = float(embedded.alphas_cumprod[timestep])
    noise = torch.randn(
        len(images), embedded.latent_channels, 16, 16, generator=torch.Generator().manual_seed(timestep)
    )
    noisy = math.sqrt(alpha_bar) * embedded.encode(images) + math.sqrt(1 - alpha_bar) * noise
    text = embedded.encode_text([scene.caption for scene in scenes])
    with torch.inference_mode():
        error = (embedded.denoiser(noisy, timestep, text).sample - noise).square().mean()
    assert float(error) < max_error
