"""Folders of DefectDiffu's transformer, and CLIP as its text encoder."""

import json
from pathlib import Path

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


@pytest.fixture(scope="module")
def clip():
    """A small CLIP text encoder with a projection of another width."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    size = len(load_backbone("embedded").tokenizer)
    layers = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=size, projection_dim=24, **layers)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


PROMPTS = ["a photo of scratch", "a photo of dent"]


def test_projected_vectors_are_those_that_clip_compares_with_images(clip, backbone, tmp_path):
    clip.save_pretrained(tmp_path / "text_encoder")
    backbone.tokenizer.save_pretrained(tmp_path / "tokenizer")
    projected, pooled = (ClipTextEncoder(tmp_path, vector) for vector in ("projected", "pooled"))
    assert (projected.width, pooled.width) == (24, 16)
    directions = pooled(PROMPTS) @ clip.text_projection.weight.T
    assert torch.allclose(projected(PROMPTS), directions / directions.norm(dim=1, keepdim=True), atol=1e-5)


def test_projected_vectors_need_a_projection(backbone):
    with pytest.raises(InputError, match=r"no weight named text_projection.weight, which text_vector: projected"):
        ClipTextEncoder(backbone.folder, "projected")


def test_a_text_encoder_in_the_layout_of_open_clip_gives_the_same_vectors(clip, backbone, tmp_path):
    """CLIP RN50, the public code's text encoder, is on the hub in this layout."""
    state, stored = clip.state_dict(), {}
    prefix = "text_model.encoder.layers."
    for block in range(2):
        target = f"transformer.resblocks.{block}."
        for kind in ("weight", "bias"):
            thirds = [state[f"{prefix}{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            stored[f"{target}attn.in_proj_{kind}"] = torch.cat(thirds)
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                stored[f"{target}{theirs}.{kind}"] = state[f"{prefix}{block}.{ours}.{kind}"]
    stored["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    stored["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    stored["ln_final.weight"] = state["text_model.final_layer_norm.weight"]
    stored["ln_final.bias"] = state["text_model.final_layer_norm.bias"]
    stored["text_projection"] = state["text_projection.weight"].T
    stored["visual.conv1.weight"] = torch.zeros(3)
    tensors = {key: value.clone().contiguous() for key, value in stored.items()}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    config = clip.config
    text = {"vocab_size": config.vocab_size, "width": 16, "heads": 2, "layers": 2, "context_length": 77}
    settings = {"model_cfg": {"embed_dim": 24, "quick_gelu": True, "text_cfg": text}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    backbone.tokenizer.save_pretrained(tmp_path)
    expected = ClipTextEncoder.__new__(ClipTextEncoder)
    expected._model, expected._tokenizer, expected.vector = clip, backbone.tokenizer, "projected"
    assert torch.allclose(ClipTextEncoder(tmp_path, "projected")(PROMPTS), expected(PROMPTS), atol=1e-5)


def test_the_conditions_hardly_change_a_pretrained_dit_at_first():
    model = load_transformer(str(EMBEDDED_DIT), 300).model  # another text width: the text layer is new
    text = torch.nn.functional.normalize(torch.randn((50, 300), generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(model.text(text).std()) == pytest.approx(0.03, rel=0.1)
    assert model.text.bias.abs().max() == 0


@pytest.mark.parametrize("kind", ["bin", "pt"])
def test_a_pickled_dit_is_converted_once(tmp_path, kind):
    plain = plain_dit()
    plain.save_pretrained(tmp_path / "original")
    state = plain.state_dict() if kind == "bin" else {"ema": _public_names(plain)}
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "original" / "config.json").read_bytes())
    torch.save(state, folder / f"diffusion_pytorch_model.{kind}")
    loaded = load_transformer(str(folder), 16).model.dit.state_dict()
    expected = load_transformer(str(tmp_path / "original"), 16).model.dit.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    written = (folder / WEIGHTS).stat().st_mtime_ns
    load_transformer(str(folder), 16)
    assert (folder / WEIGHTS).stat().st_mtime_ns == written


def test_a_pickled_file_that_runs_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    plain_dit().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({"weight": Code()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin cannot be read safely") as raised:
        load_transformer(str(tmp_path), 16)
    assert not (tmp_path / "run").exists() and "\n" not in str(raised.value)


def _public_names(dit):
    """Return the weights of a DiT by the names of the public code."""
    state, public = dit.state_dict(), {}
    first = "transformer_blocks.0.norm1.emb."
    for kind in ("weight", "bias"):
        public[f"x_embedder.proj.{kind}"] = state[f"pos_embed.proj.{kind}"]
        public[f"t_embedder.mlp.0.{kind}"] = state[f"{first}timestep_embedder.linear_1.{kind}"]
        public[f"t_embedder.mlp.2.{kind}"] = state[f"{first}timestep_embedder.linear_2.{kind}"]
        public[f"final_layer.adaLN_modulation.1.{kind}"] = state[f"proj_out_1.{kind}"]
        public[f"final_layer.linear.{kind}"] = state[f"proj_out_2.{kind}"]
        for block in range(6):
            name = f"transformer_blocks.{block}."
            thirds = [state[f"{name}attn1.to_{part}.{kind}"] for part in "qkv"]
            public[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(thirds)
            public[f"blocks.{block}.attn.proj.{kind}"] = state[f"{name}attn1.to_out.0.{kind}"]
            public[f"blocks.{block}.mlp.fc1.{kind}"] = state[f"{name}ff.net.0.proj.{kind}"]
            public[f"blocks.{block}.mlp.fc2.{kind}"] = state[f"{name}ff.net.2.{kind}"]
            public[f"blocks.{block}.adaLN_modulation.1.{kind}"] = state[f"{name}norm1.linear.{kind}"]
    public["y_embedder.embedding_table.weight"] = state[f"{first}class_embedder.embedding_table.weight"]
    public["pos_embed"] = torch.zeros(1, 16, 48)
    return public


def test_the_embedded_transformer_fits_the_embedded_backbone(backbone):
    generator = DefectDiffu.create(DefectDiffuConfig(), backbone)
    assert generator.model.split == (4, 4, 4)
    assert generator.resolution == backbone.resolution


def test_the_embedded_transformer_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED_DIT.rglob("*") if path.is_file()) <= MAX_EMBEDDED_BYTES
