"""Checkpoints: named tensors in one safetensors file, which replaces the earlier one in one step. No pickle."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defect_core.data.files import atomic_path

logger = logging.getLogger(__name__)
MOMENTS = "exp_avg", "exp_avg_sq"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        tensors: name -> tensor, on any device.
        **metadata: values that JSON can hold, such as the number of steps done.
    """
    described = {name: json.dumps(value) for name, value in metadata.items()}
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, described)


def load_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Copy the tensors of a checkpoint into existing ones and return its metadata.

    None if there is no checkpoint, or a damaged one, which counts as absent.

    Args:
        path: a file that `save_checkpoint` wrote.
        tensors: name -> tensor that receives the stored values, for all names that were saved.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored, torch.no_grad():
            # Everything is checked before the first weight is overwritten.
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            metadata = {name: json.loads(value) for name, value in (stored.metadata() or {}).items()}
            if any(shapes.get(name) != tuple(tensor.shape) for name, tensor in tensors.items()):
                raise ValueError("its tensors are not those of this training")
            for name, tensor in tensors.items():
                tensor.copy_(stored.get_tensor(name))
            return metadata
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s: cannot be used (%s); the training starts again", path.name, " ".join(str(error).split()))
        return None


def allocate_moments(optimizer: torch.optim.AdamW) -> None:
    """Create the moments of AdamW before its first step, as that step would, so that a checkpoint can be copied in."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            moments = {moment: torch.zeros_like(weight, memory_format=torch.preserve_format) for moment in MOMENTS}
            device = weight.device if group["fused"] or group["capturable"] else "cpu"
            optimizer.state[weight] = {"step": torch.zeros((), device=device), **moments}


def optimizer_state(parameters: Iterable[tuple[str, Tensor]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments and step counts of AdamW by name, to be saved or restored.

    Args:
        parameters: (name, parameter) pairs that the optimizer updates.
        optimizer: AdamW after `allocate_moments`.
    """
    return {
        f"{key}.{name}": optimizer.state[parameter][key] for name, parameter in parameters for key in ("step", *MOMENTS)
    }
