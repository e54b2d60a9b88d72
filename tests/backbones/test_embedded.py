"""The weights that ship: small, safe to load, and trained."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from defect_core.backbones import Backbone
from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.pretraining.corpus import Scene, draw, view

SIZE_LIMIT = 40_000_000  # of the 60 MB for all weights; the transformer has 20
PSNR_BOUND = 35.0  # dB on unseen corpus pictures; MODEL_CARD.md gives what is measured


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    drawn = []
    for index in range(24):
        rng = np.random.default_rng([10**6, index])  # seeds that pretraining does not use
        drawn.append(view(draw(rng), rng, local=index % 2 == 1))
    return drawn


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_package_is_small_and_holds_safetensors_only() -> None:
    files = [path for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}


def test_attributes(embedded: Backbone) -> None:
    assert (embedded.resolution, embedded.latent_size, embedded.patch_size) == (128, 16, 8)
    assert embedded.schedule.shape == (1000,)
    assert (embedded.schedule.diff() < 0).all()
    assert 0 < embedded.schedule[-1] < 0.01 < 0.999 < embedded.schedule[0] < 1
    assert not any(parameter.requires_grad for parameter in embedded.denoiser.parameters())
    assert embedded.digest == embedded.digest
    assert len(embedded.digest) == 64


def test_round_trip(embedded: Backbone, images: Tensor) -> None:
    latents = embedded.encode(images)
    assert latents.shape == (len(images), embedded.latent_channels, 16, 16)
    rebuilt = embedded.decode(latents)
    assert rebuilt.shape == images.shape
    assert rebuilt.abs().max() <= 1
    errors = (rebuilt - images).square().flatten(1).mean(1)
    values = 10 * torch.log10(4 / errors)
    assert float(values.mean()) > PSNR_BOUND


def test_the_leading_channels_hold_most_of_the_mean_square(embedded: Backbone, images: Tensor) -> None:
    spread = embedded.encode(images).transpose(0, 1).flatten(1).std(1)
    assert 0.5 < spread.square().mean() < 2.0
    assert spread[0] == spread.max() and spread[0] > 2 * spread[-1] > 0.2


def test_a_pixel_reaches_only_nearby_pixels(embedded: Backbone, images: Tensor) -> None:
    """What the pixel composite of a generator leans on: an edit stays within a patch and its neighbours."""
    changed = images[:1].clone()
    changed[..., 64:72, 64:72] = -changed[..., 64:72, 64:72]
    moved = (embedded.decode(embedded.encode(changed)) - embedded.decode(embedded.encode(images[:1]))).abs() > 0.02
    assert moved[..., 64:72, 64:72].any()
    moved[..., 56:80, 56:80] = False
    assert not moved.any()


@pytest.mark.parametrize(
    "text", ["", "a photo of a screw", "ÄÖ ☃ 漢字 \x00\n\t", "1234567890 !!<>", "Supercalifragilistic", "a" * 500]
)
def test_any_text_is_encoded_alike_every_time(embedded: Backbone, text: str) -> None:
    first, alone = embedded.encode_text([text, "a photo of a gear"]), embedded.encode_text([text])
    assert first.shape == (2, 32, 128)
    assert torch.isfinite(first).all()
    assert torch.allclose(first[0], alone[0], atol=1e-5)


def test_no_character_is_unknown(embedded: Backbone) -> None:
    tokenizer = embedded.tokenizer
    for text in ("żółć", "☃", "漢字", "naïve—test", "".join(chr(c) for c in range(33, 127))):
        inner = tokenizer(text, add_special_tokens=False).input_ids
        assert inner
        assert tokenizer.unk_token_id not in inner


def test_words_of_the_trade_are_single_tokens(embedded: Backbone) -> None:
    for word in ("scratch", "screw", "hazelnut", "blowhole", "contamination", "transistor"):
        assert len(embedded.tokenizer.tokenize(word)) == 1


def test_other_words_give_another_embedding(embedded: Backbone) -> None:
    states = embedded.encode_text(["a photo of a screw", "a photo of a scratch on a screw"])
    assert (states[0] - states[1]).abs().max() > 0.1


@pytest.mark.parametrize(("time", "bound"), [(100, 0.5), (300, 0.28), (600, 0.11)])
def test_denoiser_predicts_noise(
    embedded: Backbone, scenes: list[Scene], images: Tensor, time: int, bound: float
) -> None:
    """The noisy latents themselves, scaled to unit variance, would score 7.4, 1.3 and 0.17; an estimate of zero, 1."""
    level = float(embedded.schedule[time])
    noise = torch.randn(len(images), embedded.latent_channels, 16, 16, generator=torch.Generator().manual_seed(time))
    noisy = math.sqrt(level) * embedded.encode(images) + math.sqrt(1 - level) * noise
    text = embedded.encode_text([scene.caption for scene in scenes])
    with torch.inference_mode():
        error = (embedded.denoiser(noisy, time, text).sample - noise).square().mean()
    assert float(error) < bound
