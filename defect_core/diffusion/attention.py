"""Cross-attention that reads one text inside a mask and another outside it, and can show its maps.

Disentangled DDIM inversion, region-masked attention (brief §6.2): in every cross-attention layer
out = m' · softmax(Q K_in / sqrt(d)) V_in + (1 − m') · softmax(Q K_out / sqrt(d)) V_out,
m' being the mask at the layer's resolution. While nothing is asked, the fused attention of torch runs untouched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class RegionControl:
    """What the cross-attention layers of one U-Net are asked for; shared by all its processors.

    Attributes:
        outside: [B, T, D] text for positions outside the mask, or None for ordinary attention.
        mask: [B, 1, h, w] latent mask in {0, 1}.
        tokens: bool [B, T], the tokens of the inside text whose attention maps are kept, or None.
        maps: kept maps [B, h_l, w_l], mean over heads, sum over the asked tokens, one per layer call.
    """

    outside: Tensor | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None
    maps: list[Tensor] = field(default_factory=list)


def control_regions(denoiser: nn.Module) -> RegionControl:
    """Put region-aware processors on every cross-attention layer (`attn2`) of a diffusers U-Net.

    Returns:
        The control that `regions` switches on; off, the layers compute what they did before.
    """
    control = RegionControl()
    found = False
    for name, module in denoiser.named_modules():
        if name.endswith("attn2"):
            module.set_processor(_RegionProcessor(control))
            found = True
    if not found:
        raise ValueError("the denoiser has no cross-attention layers (modules named attn2)")
    return control


@contextmanager
def regions(
    control: RegionControl, outside: Tensor, mask: Tensor, tokens: Tensor | None = None
) -> Iterator[RegionControl]:
    """Within this block the U-Net's text is for the inside of `mask`, and `outside` is the text around it."""
    control.outside, control.mask, control.tokens, control.maps = outside, mask, tokens, []
    try:
        yield control
    finally:
        control.outside = control.mask = control.tokens = None


class _RegionProcessor:
    """A diffusers attention processor (interface of `diffusers.models.attention_processor`)."""

    def __init__(self, control: RegionControl) -> None:
        self.control = control

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        residual = hidden_states
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            text = attn.norm_encoder_hidden_states(text)
        query = _heads(attn.to_q(hidden_states), attn.heads)
        inside = self._attend(attn, query, text, attention_mask, self.control.tokens)
        if self.control.outside is not None:
            outside = self._attend(attn, query, self.control.outside, attention_mask, None)
            region = resize_mask(self.control.mask, query.shape[2]).to(inside)
            inside = torch.where(region[:, None, :, None] > 0.5, inside, outside)
        batch, _, positions, _ = inside.shape
        out = inside.transpose(1, 2).reshape(batch, positions, -1).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def _attend(self, attn: Any, query: Tensor, text: Tensor, mask: Tensor | None, tokens: Tensor | None) -> Tensor:
        key, value = _heads(attn.to_k(text), attn.heads), _heads(attn.to_v(text), attn.heads)
        if tokens is None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
        probabilities = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        asked = (probabilities.mean(1) * tokens[:, None, :].to(probabilities)).sum(-1)
        side = round(asked.shape[1] ** 0.5)
        self.control.maps.append(asked.detach().unflatten(1, (side, side)))
        return probabilities @ value


def resize_mask(mask: Tensor, positions: int) -> Tensor:
    """The latent mask at a layer of `positions` = side² places, as [B, positions]; max-pooled, so nothing is lost."""
    side = round(positions**0.5)
    return F.adaptive_max_pool2d(mask.float(), side).flatten(1)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
