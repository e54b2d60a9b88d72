"""What a backbone predicts: noise or velocity, and models of other families are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sd_layout import write_tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.backbones.prediction import velocity_to_noise
from defect_core.errors import InputError


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_noise_and_velocity_are_two_views_of_one_latent() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn((2, 3, 4, 4, 4), generator=generator)
    level = torch.tensor([0.9, 0.5, 0.01]).view(-1, 1, 1, 1)
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    velocity = level.sqrt() * noise - (1 - level).sqrt() * clean
    assert torch.allclose(velocity_to_noise(velocity, noisy, level.flatten()), noise, atol=1e-5)


@pytest.mark.parametrize("timestep", [300, torch.tensor(300), torch.tensor([300, 300])])
def test_the_denoiser_of_a_velocity_model_returns_the_noise(folder: Path, timestep: int | torch.Tensor) -> None:
    plain = load_backbone(folder)
    _edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    backbone = load_backbone(folder)
    noisy = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    states = plain.encode_text(["a", "b"])
    velocity = plain.denoiser(noisy, timestep, states).sample
    expected = velocity_to_noise(velocity, noisy, plain.alphas_cumprod[300:301])
    assert torch.allclose(backbone.denoiser(noisy, timestep, states).sample, expected, atol=1e-6)
    as_tuple = backbone.denoiser(sample=noisy, timestep=timestep, encoder_hidden_states=states, return_dict=False)
    assert torch.allclose(as_tuple[0], expected, atol=1e-6)
    half = backbone.to(dtype=torch.bfloat16)
    assert half.denoiser(noisy.bfloat16(), timestep, states.bfloat16()).sample.dtype == torch.bfloat16


def test_a_model_of_the_noise_that_states_velocity_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "embedded"))
    _edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(InputError, match="prediction_type v_prediction, but unet/ predicts the noise") as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'; expected epsilon or v_prediction"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_an_unsupported_schedule_is_refused(folder: Path, changes: dict, message: str) -> None:
    _edit(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_another_text_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads text of width 24 and text_encoder/ gives 16"):
        load_backbone(write_tiny_backbone(tmp_path / "wide", cross_attention_dim=24))


def test_a_model_that_needs_further_inputs_is_refused(tmp_path: Path) -> None:
    changes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    with pytest.raises(InputError, match=r"addition_embed_type is 'text_time'.* expected a model that reads latents"):
        load_backbone(write_tiny_backbone(tmp_path / "xl", **changes))
