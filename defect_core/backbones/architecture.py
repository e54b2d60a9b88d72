"""The networks of the embedded family, and how they are written to a folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESOLUTION = 128
PATCH_SIZE = 8
LATENT_CHANNELS = 48
TEXT_LENGTH = 32
TEXT_WIDTH = 128
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_vae(latent_channels: int = LATENT_CHANNELS) -> Any:
    """AutoencoderKL on folded images [B, 192, 16, 16]; one resolution level, since the folding did the reduction."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        in_channels=3 * PATCH_SIZE**2,
        out_channels=3 * PATCH_SIZE**2,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(2 * latent_channels + 2,),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        sample_size=RESOLUTION // PATCH_SIZE,
        scaling_factor=1.0,
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
        mid_block_add_attention=False,
    )


def build_denoiser(latent_channels: int = LATENT_CHANNELS) -> Any:
    """UNet2DConditionModel on latents [B, C, 16, 16]; attention only at 8 x 8 and 4 x 4, where it is cheap.

    One residual block a level on the way down and two on the way up: wide enough for 48 channels, and still fast on a
    CPU.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // PATCH_SIZE,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 192, 192),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_text_encoder(vocabulary: dict[str, int], start: str, end: str) -> Any:
    """CLIPTextModel, two layers of width 128, for a vocabulary and its two special tokens."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=vocabulary[start],
            eos_token_id=vocabulary[end],
            pad_token_id=vocabulary[end],
        )
    )


def save_network(network: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a network's config.json and its weights (or `state`) as half-precision safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if hasattr(network, "base_model_prefix") else "diffusion_pytorch_model"
    state = state if state is not None else network.state_dict()
    # CLIP's published weights carry this prefix; transformers 5 reads it but no longer writes it, 4 needs it
    prefix = "text_model." if stem == "model" else ""
    halves = {
        prefix + key.removeprefix(prefix): value.detach().cpu().half().contiguous()
        for key, value in sorted(state.items())
    }
    save_file(halves, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    (folder / f"{stem}.safetensors").chmod(0o644)  # safetensors writes for the owner only
    config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
    unwanted = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_use_default_values")
    write_json(folder / "config.json", {key: value for key, value in config.items() if key not in unwanted})


def save_schedule(folder: Path) -> None:
    """Write the noise schedule, that of Stable Diffusion 1.x, as a DDIMScheduler's configuration."""
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULE})


def alphas_cumprod() -> Tensor:
    """Cumulative alphas of the schedule, float32 [1000]."""
    steps = SCHEDULE["num_train_timesteps"]
    ends = (SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5)
    return torch.cumprod(1 - torch.linspace(*ends, steps, dtype=torch.float32) ** 2, 0)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a fixed layout; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in another one's place by renaming; readers see the old or the new one, never a mixture."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
