"""Networks, sizes and noise schedule of the embedded backbone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from defect_core.data.files import write_json
from defect_core.pretraining.tokenizer import END_TOKEN, START_TOKEN

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.modeling_clip import CLIPTextModel

RESOLUTION = 128
PATCH_SIZE = 8
LATENT_CHANNELS = 48
TEXT_LENGTH = 32
TEXT_WIDTH = 128
TRAINING_STEPS, BETA_START, BETA_END = 1000, 0.00085, 0.012  # the noise schedule of Stable Diffusion 1.x
SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": TRAINING_STEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_vae(latent_channels: int = LATENT_CHANNELS) -> "AutoencoderKL":
    """Return an AutoencoderKL for images [B, 192, 16, 16] with 8 x 8 patches folded into channels.

    It has one resolution level, because folding already reduces the resolution.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    normalisation: dict[str, Any] = {"latents_mean": [0.0] * latent_channels, "latents_std": [1.0] * latent_channels}
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
        mid_block_add_attention=False,
        **normalisation,
    )


def build_denoiser(
    latent_channels: int = LATENT_CHANNELS, widths: tuple[int, int, int] = (128, 192, 192)
) -> "UNet2DConditionModel":
    """Return a UNet2DConditionModel on latents [B, C, 16, 16], with attention at 8 x 8 and 4 x 4 only.

    It has one residual block per level on the way down and two on the way up. The default widths are enough for 48
    channels and still fast on a CPU.

    Args:
        latent_channels: channels of the latents.
        widths: channels of the three levels, at 16 x 16, 8 x 8 and 4 x 4.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // PATCH_SIZE,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_text_encoder(vocabulary: dict[str, int]) -> "CLIPTextModel":
    """Return a CLIPTextModel with two layers of width 128 for a vocabulary (token to id)."""
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
            bos_token_id=vocabulary[START_TOKEN],
            eos_token_id=vocabulary[END_TOKEN],
            pad_token_id=vocabulary[END_TOKEN],
        )
    )


def save_scheduler(folder: Path) -> None:
    """Write `scheduler/scheduler_config.json`, the configuration of a DDIMScheduler, to a backbone folder."""
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)


def alphas_cumprod() -> Tensor:
    """Return the cumulative products of alpha over the training timesteps, float32 [1000]."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)
