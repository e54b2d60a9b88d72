"""Write a network to a folder in the layout of diffusers and transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from defect_core.data.files import write_json

_OMITTED_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_use_default_values")


def save_network(network: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write `config.json` and the weights in half precision as safetensors.

    Args:
        network: a model of diffusers or transformers; its `config` is written.
        folder: the folder to write to; missing folders are created.
        state: the weights to write, by parameter name; None for the weights of `network`.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    is_transformers_model = hasattr(network, "base_model_prefix")
    file = folder / ("model.safetensors" if is_transformers_model else "diffusion_pytorch_model.safetensors")
    # Published CLIP weights carry this prefix. Version 5 of transformers reads it but does not write it; 4 requires it.
    prefix = "text_model." if is_transformers_model else ""
    state = network.state_dict() if state is None else state
    half_precision = {
        prefix + key.removeprefix(prefix): value.detach().cpu().half().contiguous()
        for key, value in sorted(state.items())
    }
    save_file(half_precision, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes its files readable by their owner only
    config: Any = network.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    write_json(folder / "config.json", {key: config[key] for key in config if key not in _OMITTED_CONFIG_KEYS})
