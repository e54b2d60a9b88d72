"""A tiny backbone like Stable Diffusion, with random weights, for tests that train and sample within seconds."""

from pathlib import Path
from typing import Any

import torch

from defect_core.backbones import Backbone, load_backbone

WIDTH = 32


def tiny_backbone(length: int = 24, **changes: Any) -> Backbone:
    """Return a backbone for 64 px with latents [4, 8, 8] and cross-attention at sides 8 and 4.

    `length` is the number of text tokens; `changes` are settings of the denoiser.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    tokenizer = load_backbone("embedded").tokenizer
    vae = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    unet = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        **changes,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = AutoencoderKL(**vae), UNet2DConditionModel(**unet), CLIPTextModel(text)
    for network in networks:
        network.eval().requires_grad_(False)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    backbone = Backbone("tiny", Path("tiny"), *networks, tokenizer, torch.cumprod(1 - betas, 0))
    backbone.digest = "0" * 64
    return backbone
