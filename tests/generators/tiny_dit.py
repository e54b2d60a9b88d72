"""A DiT of six blocks, width 48, with random weights, and the shapes that go with it."""

from typing import Any

import torch
from torch import Tensor, nn

from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import Conditions

CHANNELS, SIDE, WIDTH, TEXT_WIDTH = 4, 8, 48, 16
TOKENS = (SIDE // 2) ** 2


def plain_dit(sample_size: int = SIDE) -> Any:
    """diffusers' DiT, nothing in it zero; as in published weights, every block holds the same embeddings."""
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


def tiny_model(sample_size: int = SIDE, disturbed: bool = True) -> DefectDiT:
    """`disturbed` gives the cross-attention's last layer, zero at the start, weights too."""
    dit = plain_dit(sample_size)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = DefectDiT(dit, TEXT_WIDTH)
        for layer in model.cross if disturbed else ():
            nn.init.normal_(layer.out.weight, std=0.5)
    return model.eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(count: int, seed: int = 5) -> Conditions:
    return Conditions(*(random(count, TEXT_WIDTH, seed=seed + part) for part in range(3)))
