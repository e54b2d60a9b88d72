"""A DiT of six blocks of width 48 with random weights, and random inputs for it."""

from typing import Any

import torch
from torch import Tensor, nn

from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import Conditions

CHANNELS, SIDE, WIDTH, TEXT_WIDTH = 4, 8, 48, 16
TOKENS = (SIDE // 2) ** 2


def plain_dit(sample_size: int = SIDE) -> Any:
    """Return a DiT of diffusers without zero weights; all blocks have the same embeddings, as in published weights."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=WIDTH // 4,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=6,
            sample_size=sample_size,
            patch_size=2,
            num_embeds_ada_norm=5,
        )
        for parameter in dit.parameters():
            nn.init.normal_(parameter, std=0.1)
    first = dit.transformer_blocks[0].norm1.emb.state_dict()
    for block in dit.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return dit.eval()


def tiny_model(sample_size: int = SIDE, zero_cross_attention: bool = False) -> DefectDiT:
    """Return a small DefectDiT; `zero_cross_attention` keeps the zero initialisation of its output layers."""
    dit = plain_dit(sample_size)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DefectDiT(dit, TEXT_WIDTH)
        for layer in () if zero_cross_attention else model.cross:
            nn.init.normal_(layer.out.weight, std=0.5)
    return model.eval()


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_latents(count: int = 2, side: int = SIDE, seed: int = 0) -> Tensor:
    """Return standard normal latents [count, CHANNELS, side, side]."""
    return random_tensor(count, CHANNELS, side, side, seed=seed)


def random_conditions(count: int = 2, seed: int = 5) -> Conditions:
    """Return standard normal text embeddings [count, TEXT_WIDTH]."""
    return Conditions(*(random_tensor(count, TEXT_WIDTH, seed=seed + part) for part in range(3)))


def square_masks(*sides: int) -> Tensor:
    """Return one latent mask per side, with a square in the first corner."""
    masks = torch.zeros(len(sides), 1, SIDE, SIDE)
    for row, side in enumerate(sides):
        masks[row, :, :side, :side] = 1
    return masks
