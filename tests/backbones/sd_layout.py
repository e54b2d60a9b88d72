"""Write models with random weights in the layout that diffusers has for Stable Diffusion."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from defect_core.pretraining.tokenizer import END_TOKEN, START_TOKEN, save_tokenizer, train_vocabulary


def write_random_backbone(
    folder: Path,
    vae: dict[str, Any],
    unet: dict[str, Any],
    text: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a backbone folder; `vae`, `unet` and `text` are the configurations of the networks."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    vocabulary, merges = train_vocabulary(["a photo of a scratch on a screw"], 50)
    save_tokenizer(folder / "tokenizer", vocabulary, merges, 77)
    special_tokens = {
        "bos_token_id": vocabulary[START_TOKEN],
        "eos_token_id": vocabulary[END_TOKEN],
        "pad_token_id": vocabulary[END_TOKEN],
    }
    text = {"vocab_size": len(vocabulary), **special_tokens, **text}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part, build in (
            ("vae", lambda: AutoencoderKL(**vae)),
            ("unet", lambda: UNet2DConditionModel(**unet)),
            ("text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**text))),
        ):
            torch.nn.Module.to(network := build(), dtype).save_pretrained(folder / part)
            del network  # a full-size model fills much of the memory, so one network is built at a time
    schedule = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    return folder


def write_tiny_backbone(folder: Path, **changes: Any) -> Path:
    """Write a 64 px backbone with a few thousand weights; `changes` are settings of the denoiser."""
    levels = 4
    vae = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    unet = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        **changes,
    }
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return write_random_backbone(folder, vae, unet, text)


def write_tiny_ldm_backbone(folder: Path) -> Path:
    """Write a tiny backbone in the layout of LDMTextToImagePipeline: `vqvae/`, `bert/` and BERT's tokenizer."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    write_tiny_backbone(folder)
    (folder / "vae").rename(folder / "vqvae")
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "photo", "of", "the", "one", "picture", "close", "anomaly", "mark"],
    ]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 77}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"vocab_size": len(vocabulary), "d_model": 16, "encoder_layers": 1, "encoder_ffn_dim": 32, "head_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LDMBertModel(LDMBertConfig(**sizes, encoder_attention_heads=2)).save_pretrained(folder / "bert")
    return folder
