"""The Text-guided Disentangled Integrated Architecture (TDIA, section 3.2) with its mask generation module (3.4).

It uses the modules of diffusers' DiTTransformer2DModel (Peebles and Xie 2023), so the weights of a DiT load by name.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from defect_core.diffusion.checkpointing import same_attention_kernels
from defect_core.errors import InputError
from defect_core.generators.defectdiffu.text import Conditions

PAPER_SPLIT = (10, 10, 8)  # N, M, K (section 4.1)
REGION_LOGIT_BIAS = 4.0  # not in the paper; chosen by experiment
_TEXT_INIT_STD = 0.03  # as in the public code: the conditions hardly change a pretrained DiT at first


class Prediction(NamedTuple):
    """Output of the transformer for noisy latents [B, C, h, w].

    Attributes:
        noise: predicted noise, [B, C, h, w].
        variance: v of Nichol and Dhariwal (2021, eq. 15), scaled to [-1, 1], [B, C, h, w].
        mask: mask features M_f, the predicted latent of the mask image, [B, C, h, w].
        attention_maps: cross-attention maps of the M defect blocks, [B, M, heads, N], with sum 1 over the N tokens.
    """

    noise: Tensor
    variance: Tensor
    mask: Tensor
    attention_maps: Tensor


class DefectDiT(nn.Module):
    """A DiT divided into N background blocks, M defect blocks and K fusion blocks.

    Each part is modulated by its own text embedding. A DiT is modulated by its class embedding.

    Args:
        dit: diffusers' DiTTransformer2DModel with learned variance, so with twice as many output as input channels.
        text_width: W, the length of the text embeddings.
        split: N, M and K; None takes the paper's proportions of 10, 10 and 8.

    Raises:
        InputError: the DiT predicts no variance, or the split does not match its depth.
    """

    def __init__(self, dit: Any, text_width: int, split: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        depth, width = len(dit.transformer_blocks), dit.inner_dim
        self.split = split or split_depth(depth)
        if sum(self.split) != depth or min(self.split) < 1:
            raise InputError(f"defectdiffu: split is {list(self.split)}; expected three numbers that add up to {depth}")
        if dit.out_channels != 2 * dit.config.in_channels:
            raise InputError(
                f"defectdiffu: the DiT has {dit.out_channels} output channels; expected {2 * dit.config.in_channels} "
                "(noise and variance)"
            )
        self.dit = dit
        self.heads, self.channels = int(dit.config.num_attention_heads), int(dit.config.in_channels)
        self.patch = int(dit.config.patch_size)
        self.gradient_checkpointing = False
        for block in dit.transformer_blocks:
            del block.norm1.emb.class_embedder  # The text embedding replaces the class embedding.
        self.text = nn.Linear(text_width, width)
        nn.init.normal_(self.text.weight, std=_TEXT_INIT_STD)
        nn.init.zeros_(self.text.bias)
        self.cross = nn.ModuleList(DefectCrossAttention(width, self.heads) for _ in range(self.split[1]))
        self.mask_head = MaskGenerationModule(self.split[1] * self.heads, dit.config.patch_size**2 * self.channels)

    def forward(
        self, latents: Tensor, timesteps: Tensor, conditions: Conditions, region: Tensor | None = None
    ) -> Prediction:
        """Return the predicted noise, variance and mask, and the attention maps.

        Args:
            latents: noisy latents, [B, C, h, w].
            timesteps: int [B].
            conditions: text embeddings, [B, W].
            region: {0, 1} [B, 1, h, w], where the defect should be (not in the paper). `REGION_LOGIT_BIAS` is added to
                the attention logits of its tokens. Zeros change nothing.
        """
        return self.forward_embedded(latents, timesteps, [self.text(embedding) for embedding in conditions], region)

    def forward_embedded(
        self, latents: Tensor, timesteps: Tensor, embeddings: list[Tensor], region: Tensor | None = None
    ) -> Prediction:
        """Return the same as `forward` for three condition embeddings of the transformer's width, [B, D]."""
        logit_bias = None if region is None else region_logit_bias(region, self.patch)
        background, defect, fusion = self.split
        parts = [0] * background + [1] * defect + [2] * fusion
        tokens, maps = self.dit.pos_embed(latents), []
        for index, block in enumerate(self.dit.transformer_blocks):
            cross = self.cross[index - background] if parts[index] == 1 else None
            embedding = self._embed_timesteps(block, timesteps, tokens.dtype) + embeddings[parts[index]]
            inputs = (block, cross, tokens, embedding, logit_bias)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens, block_map = checkpoint(
                    _run_block, *inputs, use_reentrant=False, context_fn=_recompute_with_the_same_kernels
                )
            else:
                tokens, block_map = _run_block(*inputs)
            if block_map is not None:
                maps.append(block_map)
        # diffusers keeps a copy of the timestep embedding in every block; the last layer uses that of the first block.
        last = self._embed_timesteps(self.dit.transformer_blocks[0], timesteps, tokens.dtype) + embeddings[2]
        shift, scale = self.dit.proj_out_1(F.silu(last)).chunk(2, dim=1)
        tokens = self.dit.proj_out_2(self.dit.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
        noise, variance = self._unpatchify(tokens, latents.shape, 2 * self.channels).chunk(2, dim=1)
        attention_maps = torch.stack(maps, 1)
        mask = self._unpatchify(self.mask_head(attention_maps), latents.shape, self.channels)
        return Prediction(noise, variance, mask, attention_maps)

    def _embed_timesteps(self, block: Any, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = block.norm1.emb
        return embedding.timestep_embedder(embedding.time_proj(timesteps).to(dtype))

    def _unpatchify(self, tokens: Tensor, shape: torch.Size, channels: int) -> Tensor:
        """Return tokens [B, N, patch² · channels] as a latent [B, channels, h, w]."""
        patch = self.patch
        height, width = shape[-2] // patch, shape[-1] // patch
        squares = tokens.reshape(shape[0], height, width, patch, patch, channels)
        return squares.permute(0, 5, 1, 3, 2, 4).reshape(shape[0], channels, height * patch, width * patch)


class DefectCrossAttention(nn.Module):
    """Cross-attention of the image tokens to the one vector of the defect condition (eq. 5).

    With a single key, a softmax over the keys is constant. So the softmax is over the image tokens, as in the public
    code, and a map shows where the defect is. The output layer starts at zero (not in the paper), so a pretrained DiT
    starts unchanged.

    Args:
        width: D, the width of the transformer.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, embedding: Tensor, logit_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the residual [B, N, D] and the attention maps [B, heads, N].

        Args:
            tokens: image tokens, [B, N, D].
            embedding: defect condition with timestep, [B, D].
            logit_bias: added to the logits, [B, 1, N].
        """
        query = self.query(self.norm(tokens)).unflatten(-1, (self.heads, -1))
        key, value = (layer(embedding).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value))
        logits = torch.einsum("bnhd,bhd->bhn", query, key).float() / query.shape[-1] ** 0.5
        maps = (logits if logit_bias is None else logits + logit_bias).softmax(-1)
        mixed = torch.einsum("bhn,bhd->bnhd", maps.to(value.dtype), value)
        return self.out(mixed.flatten(2)), maps


class MaskGenerationModule(nn.Module):
    """Predicts the mask features from the concatenated maps of all defect blocks, token by token (section 3.4).

    Args:
        maps: number of attention maps, blocks times heads.
        outputs: values per token.
    """

    def __init__(self, maps: int, outputs: int) -> None:
        super().__init__()
        first, second = max(2 * maps, 128), max(maps, 128)
        self.layers = nn.Sequential(
            nn.LayerNorm(maps, elementwise_affine=False, eps=1e-6),
            nn.Linear(maps, first),
            nn.SiLU(),
            nn.Linear(first, second),
            nn.SiLU(),
            nn.Linear(second, outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return tokens [B, N, outputs] for attention maps [B, M, heads, N]."""
        # A map has mean 1 / N. It is scaled to mean 1, so that the epsilon of the norm stays negligible.
        scaled = maps * maps.shape[-1]
        return self.layers(scaled.flatten(1, 2).transpose(1, 2))


def region_logit_bias(region: Tensor, patch: int) -> Tensor:
    """Return what a region {0, 1} [B, 1, h, w] adds to the logits, [B, 1, N]. One cell is enough to mark a token."""
    return REGION_LOGIT_BIAS * F.max_pool2d(region, patch).flatten(2)


def split_depth(depth: int) -> tuple[int, int, int]:
    """Return the numbers of background, defect and fusion blocks in the paper's proportions.

    >>> split_depth(28), split_depth(12), split_depth(6)
    ((10, 10, 8), (4, 4, 4), (2, 2, 2))
    """
    blocks = round(depth * PAPER_SPLIT[0] / sum(PAPER_SPLIT))
    return blocks, blocks, depth - 2 * blocks


def _recompute_with_the_same_kernels() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a checkpointed block's forward pass and of its recomputation."""
    return nullcontext(), same_attention_kernels()


def _run_block(
    block: Any, cross: nn.Module | None, tokens: Tensor, embedding: Tensor, logit_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Run an adaLN-zero block of diffusers with the cross-attention after the self-attention, and return its maps."""
    modulation = block.norm1.linear(block.norm1.silu(embedding))[:, None]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
    tokens = tokens + gate * block.attn1(block.norm1.norm(tokens) * (1 + scale) + shift)
    maps = None
    if cross is not None:
        residual, maps = cross(tokens, embedding, logit_bias)
        tokens = tokens + residual
    return tokens + gate_mlp * block.ff(block.norm3(tokens) * (1 + scale_mlp) + shift_mlp), maps
