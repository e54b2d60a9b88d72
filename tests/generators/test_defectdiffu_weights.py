"""Folders of DefectDiffu's transformer, and CLIP as its text encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_dit import plain_dit, tiny_model

from defect_core.backbones.load import load_backbone
from defect_core.errors import InputError
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.generator import DefectDiffu
from defect_core.generators.defectdiffu.text import ClipTextEncoder
from defect_core.generators.defectdiffu.weights import EMBEDDED_DIT, load_transformer, save_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_EMBEDDED_BYTES = 20e6


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


def _drop_weight(path):
    state = load_file(path)
    del state["proj_out_1.bias"]
    save_file(state, path, metadata={"format": "pt"})


def _halve_output_channels(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "out_channels": 4}))


@pytest.mark.parametrize("subfolder", [".", "transformer"])
def test_a_dit_loads_from_its_folder_or_the_parent(tmp_path, subfolder):
    plain = plain_dit()
    plain.save_pretrained(tmp_path / "transformer")
    loaded = load_transformer(str(tmp_path / subfolder), 16)
    assert torch.equal(loaded.model.dit.proj_out_2.weight, plain.proj_out_2.weight)
    again = load_transformer(str(tmp_path / subfolder), 16).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in loaded.model.state_dict().items())


def test_a_folder_without_scheduler_gets_the_betas_of_dit(tmp_path):
    plain_dit().save_pretrained(tmp_path)
    betas = load_transformer(str(tmp_path), 16).schedule.betas
    assert float(betas[0]) == pytest.approx(1e-4, rel=1e-3)
    assert float(betas[-1]) == pytest.approx(0.02, rel=1e-3)


@pytest.fixture
def saved(tmp_path):
    """A tiny model and the folder that it was saved to."""
    model = tiny_model()
    scheduler_config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10, "beta_schedule": "scaled_linear"}
    save_transformer(tmp_path, model, model.state_dict(), scheduler_config)
    return model, tmp_path


def test_a_saved_transformer_loads_with_all_its_parts(saved):
    model, folder = saved
    loaded = load_transformer(str(folder), 16)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value.half().float()), key
    assert loaded.schedule.steps == 10


def test_the_text_layer_is_initialised_for_another_text_width(saved):
    _, folder = saved
    assert load_transformer(str(folder), 20).model.text.weight.shape[1] == 20


def test_diffusers_loads_a_saved_transformer(saved):
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    _, folder = saved
    _, info = DiTTransformer2DModel.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be loaded"),
        (lambda folder: _drop_weight(folder / WEIGHTS), "no weight named proj_out_1.bias"),
        (lambda folder: _halve_output_channels(folder / "config.json"), "cannot be loaded|expected 8"),
    ],
    ids=["no config", "no weights", "missing weight", "wrong channels"],
)
def test_a_damaged_dit_is_refused_in_one_line(tmp_path, damage, message):
    plain_dit().save_pretrained(tmp_path / "transformer")
    damage(tmp_path / "transformer")
    with pytest.raises(InputError, match=message) as raised:
        load_transformer(str(tmp_path / "transformer"), 16)
    assert "\n" not in str(raised.value)


def test_an_unknown_dit_is_refused():
    with pytest.raises(InputError, match="dit nowhere"):
        load_transformer("nowhere", 16)


def test_a_text_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"text_encoder/config\.json is missing"):
        ClipTextEncoder(tmp_path)


def test_clip_embeddings_are_normalised(backbone):
    encoder = ClipTextEncoder(backbone.folder)
    embeddings = encoder(["a photo of scratch", "a photo of dent", "a photo of scratch"])
    assert embeddings.shape == (3, encoder.width)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(embeddings[0], embeddings[2], atol=1e-6)
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-3)


def test_the_embedded_transformer_fits_the_embedded_backbone(backbone):
    generator = DefectDiffu.create(DefectDiffuConfig(), backbone)
    assert generator.model.split == (4, 4, 4)
    assert generator.resolution == backbone.resolution


def test_the_embedded_transformer_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED_DIT.rglob("*") if path.is_file()) <= MAX_EMBEDDED_BYTES
