"""The transformer in three parts: a DiT whose blocks read different texts, with a mask head on the defect part.

Built on diffusers' DiTTransformer2DModel (Peebles and Xie 2023): patches, blocks and last layer are its own modules, so
a DiT's weights load by their names. The first N blocks are the background part, the next M the defect part, the last K
the fusion part (DefectDiffu, section 3.2); each is modulated by its own text, where a DiT is by its class.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from defect_core.errors import InputError
from defect_core.generators.defectdiffu.text import Conditions

PAPER_SPLIT = (10, 10, 8)
FOCUS = 4.0
_TEXT_SPREAD = 0.5
_KERNELS = {
    SDPBackend.MATH: cuda.math_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
}


class Prediction(NamedTuple):
    """What the transformer says of noisy latents.

    `noise` [B, C, h, w]; `variance` [B, C, h, w], between the posterior's (-1) and beta (1), in logarithms
    (Nichol and Dhariwal 2021, eq. 15); `mask` [B, C, h, w], the latent of the mask's picture; `maps` [B, M, heads, N],
    where each defect block looked: sums to 1 over the N image tokens.
    """

    noise: Tensor
    variance: Tensor
    mask: Tensor
    maps: Tensor


class DefectDiT(nn.Module):
    """A DiT split into background, defect and fusion parts.

    Args:
        dit: diffusers' DiTTransformer2DModel with learned variance (twice as many output channels as input).
        text_width: W of the condition vectors.
        split: number of blocks (N, M, K); None takes the paper's proportions of 10, 10, 8.

    Raises:
        InputError: the DiT predicts no variance, or the split does not fit its depth.
    """

    def __init__(self, dit: Any, text_width: int, split: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        depth, width = len(dit.transformer_blocks), dit.inner_dim
        self.split = split or split_depth(depth)
        if sum(self.split) != depth or min(self.split) < 1:
            raise InputError(f"defectdiffu: split {list(self.split)}: expected three numbers that add up to {depth}")
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
            del block.norm1.emb.class_embedder  # texts stand where the class stood
        self.text = nn.Linear(text_width, width)
        nn.init.normal_(self.text.weight, std=_TEXT_SPREAD)
        nn.init.zeros_(self.text.bias)
        self.cross = nn.ModuleList(TokenAttention(width, self.heads) for _ in range(self.split[1]))
        self.mask_head = MaskHead(self.split[1] * self.heads, dit.config.patch_size**2 * self.channels)

    def forward(
        self, latents: Tensor, times: Tensor, conditions: Conditions, region: Tensor | None = None
    ) -> Prediction:
        """Noisy latents [B, C, h, w] at time steps [B] (int) under texts [B, W].

        `region`, {0, 1} [B, 1, h, w], says where the defect's text belongs (ours): there the logits of its attention
        are raised by `FOCUS`. Zeros say nothing.
        """
        return self.denoise(latents, times, [self.text(vector) for vector in conditions], region)

    def denoise(
        self, latents: Tensor, times: Tensor, vectors: list[Tensor], region: Tensor | None = None
    ) -> Prediction:
        """As `forward`, with the three condition vectors at the transformer's own width [B, D]."""
        raised = None if region is None else raised_logits(region, self.patch)
        background, defect, _ = self.split
        parts = [0] * background + [1] * defect + [2] * self.split[2]
        tokens, maps = self.dit.pos_embed(latents), []
        for index, block in enumerate(self.dit.transformer_blocks):
            cross = self.cross[index - background] if parts[index] == 1 else None
            vector = self._time(block, times, tokens.dtype) + vectors[parts[index]]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens, seen = checkpoint(
                    _run_block, block, cross, tokens, vector, raised, use_reentrant=False, context_fn=_as_now
                )
            else:
                tokens, seen = _run_block(block, cross, tokens, vector, raised)
            if seen is not None:
                maps.append(seen)
        last = self._time(self.dit.transformer_blocks[0], times, tokens.dtype) + vectors[2]
        shift, scale = self.dit.proj_out_1(F.silu(last)).chunk(2, dim=1)
        tokens = self.dit.proj_out_2(self.dit.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None])
        noise, variance = self._unpatchify(tokens, latents.shape, 2 * self.channels).chunk(2, dim=1)
        looks = torch.stack(maps, 1)
        mask = self._unpatchify(self.mask_head(looks), latents.shape, self.channels)
        return Prediction(noise, variance, mask, looks)

    def _time(self, block: Any, times: Tensor, dtype: torch.dtype) -> Tensor:
        """diffusers keeps a copy of the time embedding in every block; the last layer uses the first block's."""
        embedding = block.norm1.emb
        return embedding.timestep_embedder(embedding.time_proj(times).to(dtype))

    def _unpatchify(self, tokens: Tensor, shape: torch.Size, channels: int) -> Tensor:
        patch = self.patch
        height, width = shape[-2] // patch, shape[-1] // patch
        squares = tokens.reshape(shape[0], height, width, patch, patch, channels)
        return squares.permute(0, 5, 1, 3, 2, 4).reshape(shape[0], channels, height * patch, width * patch)


class TokenAttention(nn.Module):
    """Cross-attention to one text vector: with a single key, the softmax runs over the image tokens.

    So the map says where in the picture the text belongs. The paper's eq. 5 leaves open over what it normalises; this
    is what its public code does. The last layer starts at zero (ours), so that a pretrained DiT starts undisturbed.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, vector: Tensor, raised: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, D] and one vector [B, D] to the residual [B, N, D] and the maps [B, heads, N].

        `raised` [B, 1, N] is added to the logits.
        """
        query = self.query(self.norm(tokens)).unflatten(-1, (self.heads, -1))
        key, value = (layer(vector).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value))
        logits = torch.einsum("bnhd,bhd->bhn", query, key).float() / query.shape[-1] ** 0.5
        maps = (logits if raised is None else logits + raised).softmax(-1)
        mixed = torch.einsum("bhn,bhd->bnhd", maps.to(value.dtype), value)
        return self.out(mixed.flatten(2)), maps


class MaskHead(nn.Module):
    """The defect blocks' maps, all heads side by side, to the patches of a mask latent; token by token."""

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
        """Maps [B, M, heads, N] to tokens [B, N, outputs]."""
        level = maps * maps.shape[-1]  # about 1 whatever the number of tokens, so that the norm's epsilon stays small
        return self.layers(level.flatten(1, 2).transpose(1, 2))


def raised_logits(region: Tensor, patch: int) -> Tensor:
    """What a region {0, 1} [B, 1, h, w] adds to the logits of its tokens, [B, 1, N]; one cell in it is enough."""
    return FOCUS * F.max_pool2d(region, patch).flatten(2)


def split_depth(depth: int) -> tuple[int, int, int]:
    """A depth in the paper's proportions.

    >>> split_depth(28), split_depth(12), split_depth(6)
    ((10, 10, 8), (4, 4, 4), (2, 2, 2))
    """
    share = round(depth * PAPER_SPLIT[0] / sum(PAPER_SPLIT))
    return share, share, depth - 2 * share


def _as_now() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpoint's first and second run: the second, in the backward pass, attends by the same kernels.

    torch sees to the number types of the second run, but not to the kernels (`training.bf16_autocast` chooses one).
    """
    used = [kind for kind, enabled in _KERNELS.items() if enabled()]
    return nullcontext(), sdpa_kernel(used)


def _run_block(
    block: Any, cross: TokenAttention | None, tokens: Tensor, vector: Tensor, raised: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One of diffusers' adaLN-zero blocks, told its condition vector instead of a class, with an extra attention."""
    modulation = block.norm1.linear(block.norm1.silu(vector))[:, None]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
    tokens = tokens + gate * block.attn1(block.norm1.norm(tokens) * (1 + scale) + shift)
    maps = None
    if cross is not None:
        residual, maps = cross(tokens, vector, raised)
        tokens = tokens + residual
    return tokens + gate_mlp * block.ff(block.norm3(tokens) * (1 + scale_mlp) + shift_mlp), maps
