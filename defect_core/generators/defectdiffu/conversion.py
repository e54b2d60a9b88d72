"""Convert published weights: DiT as a pickled state dict, and the text encoder of an open_clip folder.

Pickled files are read by torch's restricted unpickler (`weights_only`), which builds tensors and containers only and
runs no code of the file. The converted file is stored beside the original, or in the cache if that is read-only.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.data.files import atomic_path
from defect_core.errors import InputError

CONVERTED_NAME = "diffusion_pytorch_model.safetensors"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "defectory" / "converted"
# Names of the public DiT code -> names of diffusers; {} is the number of the block.
_DIT_NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK_NAMES = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_EMBEDDER_NAMES = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_CLIP_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def safe_dit_folder(folder: Path, setting: str) -> Path:
    """Return a folder with the DiT in `folder` as safetensors, converted from a `.bin` or `.pt` file if necessary.

    Args:
        folder: contains `config.json` of diffusers, and weights as `*.safetensors`, `*.bin` or `*.pt`.
        setting: name of the setting and its value, for error messages.

    Raises:
        InputError: a pickled file is not a plain state dict.
    """
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
    if list(folder.glob("*.safetensors")) or not pickled:
        return folder
    path = pickled[0]
    state = read_pickled_state(path, setting)
    if "x_embedder.proj.weight" in state:
        state = rename_dit_weights(state)
    target = folder if os.access(folder, os.W_OK) else _CACHE / hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    target.mkdir(parents=True, exist_ok=True)
    if target != folder:
        (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    with atomic_path(target / CONVERTED_NAME) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary, {"format": "pt"})
    return target


def read_pickled_state(path: Path, setting: str) -> dict[str, Tensor]:
    """Return the tensors of a pickled state dict.

    Raises:
        InputError: the file contains anything but tensors in dictionaries.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises errors of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{setting}: {path.name} cannot be read safely ({reason[:120]}); expected a state dict of tensors"
        ) from error
    for key in ("ema", "state_dict", "model"):  # containers of public checkpoints
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{setting}: {path.name} is no state dict; expected names and tensors")
    return dict(loaded)


def rename_dit_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the public DiT code by the names of diffusers, for the same network.

    Query, key and value are one matrix there. diffusers stores the embedders once per block, and computes the table of
    positions.
    """
    renamed: dict[str, Tensor] = {}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for name, value in state.items():
        part, _, kind = name.rpartition(".")
        if part in _DIT_NAMES:
            renamed[f"{_DIT_NAMES[part]}.{kind}"] = value
        elif part in _EMBEDDER_NAMES:
            for block in range(blocks):
                renamed[f"transformer_blocks.{block}.norm1.emb.{_EMBEDDER_NAMES[part]}.{kind}"] = value.clone()
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)", part):
            prefix = f"transformer_blocks.{match[1]}."
            if match[2] == "attn.qkv":
                for target, third in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{prefix}attn1.to_{target}.{kind}"] = third.clone()
            elif match[2] in _BLOCK_NAMES:
                renamed[f"{prefix}{_BLOCK_NAMES[match[2]]}.{kind}"] = value
    return renamed


def read_open_clip_text(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the text encoder of an open_clip folder, as configuration and weights of transformers' CLIP.

    The public code of DefectDiffu uses CLIP RN50, which the hub has in this layout only.

    Args:
        folder: contains `open_clip_config.json` and `open_clip_model.safetensors`.
    """
    settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    text = settings["text_cfg"]
    config = {
        "vocab_size": text["vocab_size"],
        "hidden_size": text["width"],
        "intermediate_size": 4 * text["width"],
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "max_position_embeddings": text["context_length"],
        "projection_dim": settings["embed_dim"],
        "hidden_act": "quick_gelu" if settings.get("quick_gelu", True) else "gelu",
    }
    stored = load_file(folder / "open_clip_model.safetensors")
    weights = {
        "text_model.embeddings.token_embedding.weight": stored["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": stored["positional_embedding"],
        "text_model.final_layer_norm.weight": stored["ln_final.weight"],
        "text_model.final_layer_norm.bias": stored["ln_final.bias"],
        "text_projection.weight": stored["text_projection"].T,
    }
    for name, value in stored.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
        if match is None:
            continue
        prefix = f"text_model.encoder.layers.{match[1]}."
        if match[2] == "attn.in_proj":
            for target, third in zip("qkv", value.chunk(3), strict=True):
                weights[f"{prefix}self_attn.{target}_proj.{match[3]}"] = third
        else:
            weights[f"{prefix}{_CLIP_NAMES[match[2]]}.{match[3]}"] = value
    return config, {name: value.float().contiguous() for name, value in weights.items()}
