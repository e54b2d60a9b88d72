"""Load and save the transformer: a folder as diffusers writes a DiT, with or without the parts of DefectDiffu."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.backbones.locate import digest_files, find_model
from defect_core.backbones.save import save_network
from defect_core.data.files import write_json
from defect_core.errors import InputError
from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.conversion import safe_dit_folder
from defect_core.generators.defectdiffu.model import DefectDiT

EMBEDDED_DIT = Path(__file__).parent / "embedded"
ADDED_FILE = "defectdiffu.safetensors"
ADDED_PREFIXES = ("text.", "cross.", "mask_head.")
LAYOUT = "transformer/ with config.json and weights, as diffusers writes a DiT"
DIT_SCHEDULE = {  # Peebles and Xie (2023), section 4
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


class LoadedTransformer(NamedTuple):
    """A transformer with its noise schedule.

    Attributes:
        model: the transformer.
        schedule: noise levels of all training timesteps.
        scheduler_config: configuration of a diffusers scheduler with the same noise levels.
        digest: SHA-256 of the files that the weights were read from.
    """

    model: DefectDiT
    schedule: LearnedVarianceSchedule
    scheduler_config: dict[str, Any]
    digest: str


def load_transformer(name: str, text_width: int, split: tuple[int, int, int] | None = None) -> LoadedTransformer:
    """Load a DiT by name and divide it into background, defect and fusion part.

    The text layer, the cross-attention and the mask generation module are read from `defectdiffu.safetensors` if the
    folder has one for the same text width and number of defect blocks. Otherwise they are initialised with seed 0.

    Args:
        name: `embedded`; a folder that contains `transformer/` or is one; or a hub name such as
            `facebook/DiT-XL-2-256`. A hub name is searched in DEFECTORY_WEIGHTS, in the hub's cache and on the hub.
            A pickled `.bin` or `.pt` file is converted to safetensors once (see `conversion.py`).
        text_width: W, the length of the text embeddings.
        split: see `DefectDiT`.

    Raises:
        InputError: nothing is found, or a part is missing or cannot be read.
    """
    root = find_model(
        "dit", name, EMBEDDED_DIT, LAYOUT, allow_patterns=["transformer/*", "scheduler/*"], ignore_patterns=[]
    )
    part = root / "transformer" if (root / "transformer" / "config.json").is_file() else root
    part = safe_dit_folder(part, f"dit {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DefectDiT(_load_dit(part, name), text_width, split)
    added = root / ADDED_FILE
    if added.is_file():
        state = {key: value.float() for key, value in load_file(added).items()}
        defect_blocks = len({key.split(".")[1] for key in state if key.startswith("cross.")})
        if state["text.weight"].shape[1] == text_width and len(model.cross) == defect_blocks:
            model.load_state_dict(state, strict=False)
    model.requires_grad_(False).eval()
    scheduler_config = _read_scheduler_config(root)
    digest = digest_files([part / "config.json", *part.glob("*.safetensors"), added], lambda path: path.name)
    return LoadedTransformer(model, make_schedule(scheduler_config), scheduler_config, digest)


def rebuild_transformer(config: dict[str, Any], state: dict[str, Tensor], split: tuple[int, int, int]) -> DefectDiT:
    """Return a frozen transformer in evaluation mode.

    Args:
        config: configuration of the DiT.
        state: weights of all parts, by the names in `DefectDiT.state_dict`.
        split: see `DefectDiT`.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DefectDiT(DiTTransformer2DModel.from_config(config), state["text.weight"].shape[1], split)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def make_schedule(scheduler_config: dict[str, Any]) -> LearnedVarianceSchedule:
    """Return the noise levels of all training timesteps from the configuration of a diffusers scheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(scheduler_config)  # diffusers declares a tuple
    return LearnedVarianceSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)


def save_transformer(
    folder: Path, model: DefectDiT, state: dict[str, Tensor], scheduler_config: dict[str, Any]
) -> None:
    """Write a folder that `load_transformer` reads, with weights in half precision.

    Args:
        folder: the folder to write.
        model: gives the configuration.
        state: the weights, by the names in `DefectDiT.state_dict`.
        scheduler_config: configuration of a diffusers scheduler.
    """
    width = model.dit.inner_dim
    plain = {key.removeprefix("dit."): value for key, value in state.items() if key.startswith("dit.")}
    for index in range(len(model.dit.transformer_blocks)):
        # diffusers requires a table of class embeddings. DefectDiT does not read it.
        name = f"transformer_blocks.{index}.norm1.emb.class_embedder.embedding_table.weight"
        plain[name] = torch.zeros(model.dit.config.num_embeds_ada_norm + 1, width)
    save_network(model.dit, folder / "transformer", plain)
    added = {key: value for key, value in sorted(state.items()) if key.startswith(ADDED_PREFIXES)}
    halves = {key: value.detach().cpu().half().contiguous() for key, value in added.items()}
    save_file(halves, folder / ADDED_FILE)
    (folder / ADDED_FILE).chmod(0o644)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config)


def _load_dit(folder: Path, name: str) -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    if not (folder / "config.json").is_file():
        raise InputError(f"dit {name}: {folder.name}/config.json is missing; expected {LAYOUT}")
    try:
        loaded: Any = DiTTransformer2DModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        network, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"no weight named {min(info['missing_keys'])}")
    except Exception as error:  # diffusers raises errors of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"dit {name}: cannot be loaded ({reason}); expected {LAYOUT}") from error
    return network.float()


def _read_scheduler_config(root: Path) -> dict[str, Any]:
    """Return the scheduler configuration in the folder, or DiT's linear betas if there is none."""
    path = root / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return dict(DIT_SCHEDULE)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        make_schedule(config)
    except Exception as error:  # diffusers raises errors of many types
        raise InputError(f"{path}: cannot be read ({error}); expected the configuration of a scheduler") from error
    return {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
