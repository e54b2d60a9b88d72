"""Reading and writing a transformer's folder: a DiT in diffusers' layout, with or without the parts added to it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defect_core.backbones.architecture import save_network, write_json
from defect_core.backbones.locate import digest_files, find_model
from defect_core.errors import InputError
from defect_core.generators.defectdiffu.ancestral import Chain, chain_of
from defect_core.generators.defectdiffu.model import DefectDiT

EMBEDDED_DIT = Path(__file__).parents[2] / "backbones" / "embedded_dit"
ADDED_FILE = "defectdiffu.safetensors"
LAYOUT = "transformer/ with config.json and *.safetensors, as diffusers writes a DiT"
DIT_SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
ADDED = ("text.", "cross.", "mask_head.")


class Transformer(NamedTuple):
    """A transformer; its noise schedule, as a chain and as a scheduler's configuration; what it was read from."""

    model: DefectDiT
    chain: Chain
    schedule: dict[str, Any]
    digest: str


def load_transformer(name: str, text_width: int, split: tuple[int, int, int] | None = None) -> Transformer:
    """Load a DiT by name and split it in three parts.

    The added parts (text layer, cross-attention, mask head) come from `defectdiffu.safetensors` where the folder has
    it and the text is as wide; else they start afresh, the same on every machine.

    Args:
        name: `embedded`; a folder that holds `transformer/` or is one; or a hub name such as `facebook/DiT-XL-2-256`,
            looked for in DEFECTORY_WEIGHTS, in the hub's cache and on the hub. Weights in safetensors only.
        text_width: W of the condition vectors.
        split: see `DefectDiT`.

    Raises:
        InputError: nothing is found, or a part is missing or cannot be read.
    """
    root = find_model("dit", name, EMBEDDED_DIT, LAYOUT, wanted=["transformer/*", "scheduler/*"], unwanted=["*.bin"])
    part = root / "transformer" if (root / "transformer" / "config.json").is_file() else root
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DefectDiT(_load_dit(part, name), text_width, split)
    added = root / ADDED_FILE
    if added.is_file():
        state = {key: value.float() for key, value in load_file(added).items()}
        if state["text.weight"].shape[1] == text_width and len(model.cross) == 1 + max(
            int(key.split(".")[1]) for key in state if key.startswith("cross.")
        ):
            model.load_state_dict(state, strict=False)
    model.requires_grad_(False).eval()
    schedule = _read_schedule(root)
    digest = digest_files([part / "config.json", *part.glob("*.safetensors"), added], lambda path: path.name)
    return Transformer(model, make_chain(schedule), schedule, digest)


def rebuild(config: dict[str, Any], state: dict[str, Tensor], split: tuple[int, int, int]) -> DefectDiT:
    """A transformer from a DiT's configuration and the weights of all its parts, by the model's names."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DefectDiT(DiTTransformer2DModel.from_config(config), state["text.weight"].shape[1], split)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.requires_grad_(False).eval()


def make_chain(schedule: dict[str, Any]) -> Chain:
    """The chain of a scheduler's configuration."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return chain_of(DDIMScheduler.from_config(schedule).alphas_cumprod)


def save_transformer(folder: Path, model: DefectDiT, state: dict[str, Tensor], schedule: dict[str, Any]) -> None:
    """Write a folder that `load_transformer` reads, in half precision.

    Args:
        model: gives the configuration.
        state: the weights, by the model's names.
        schedule: configuration of the noise schedule, as diffusers' schedulers have it.
    """
    width = model.dit.inner_dim
    plain = {key.removeprefix("dit."): value for key, value in state.items() if key.startswith("dit.")}
    for index in range(len(model.dit.transformer_blocks)):
        # a plain DiT expects a table of classes: one class and the empty one, both without effect
        name = f"transformer_blocks.{index}.norm1.emb.class_embedder.embedding_table.weight"
        plain[name] = torch.zeros(model.dit.config.num_embeds_ada_norm + 1, width)
    save_network(model.dit, folder / "transformer", plain)
    added = {key: value.detach().cpu().half().contiguous() for key, value in state.items() if key.startswith(ADDED)}
    save_file(dict(sorted(added.items())), folder / ADDED_FILE)
    (folder / ADDED_FILE).chmod(0o644)
    write_json(folder / "scheduler" / "scheduler_config.json", schedule)


def _load_dit(folder: Path, name: str) -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    if not (folder / "config.json").is_file():
        raise InputError(f"dit {name}: {folder.name}/config.json is missing; expected {LAYOUT}")
    try:
        network, info = DiTTransformer2DModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"no weight named {min(info['missing_keys'])}")
    except Exception as error:  # the readers raise many kinds; the user needs one line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"dit {name}: cannot be loaded ({reason}); expected {LAYOUT}") from error
    return network.float()


def _read_schedule(root: Path) -> dict[str, Any]:
    """The schedule that lies beside the transformer; without one, DiT's linear betas."""
    path = root / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return dict(DIT_SCHEDULE)
    try:
        schedule = json.loads(path.read_text(encoding="utf-8"))
        make_chain(schedule)
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a scheduler's configuration") from error
    return {key: value for key, value in schedule.items() if not key.startswith("_") or key == "_class_name"}
