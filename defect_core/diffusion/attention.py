"""Look into the cross-attention of a diffusers U-Net, and steer it: capture maps, re-weight tokens, mask two texts.

    control = control_attention(denoiser)
    with control.capture(groups) as maps, control.reweight(tokens, weights):
        noise = denoiser(latents, time, text).sample
    maps.mean(16)  # [B, G, 16, 16]

The three requests combine and nest, and end with their blocks. While nothing is asked, every layer runs the processor
it had before, torch's fused attention, bit for bit. Everything is differentiable and stays on the device; explicit
attention probabilities are computed only in the layers, and only while, something needs them.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defect_core.diffusion.losses import resize_mask
from defect_core.errors import InputError

Softmax = Literal["tokens", "pixels"]
Where = Literal["probabilities", "logits"]
Weights = Tensor | Callable[[int], Tensor]


def control_attention(denoiser: nn.Module) -> "AttentionControl":
    """The control over all cross-attention layers (`attn2`) of a diffusers U-Net; one per U-Net, made at first asking.

    Raises:
        InputError: the U-Net has no cross-attention layers.
    """
    layers = {name: module for name, module in denoiser.named_modules() if name.endswith("attn2")}
    if not layers:
        raise InputError(
            "the backbone's U-Net has no cross-attention layers (attn2); expected one that reads text, such as "
            "'embedded' or Stable Diffusion 1.5"
        )
    present = {layer.processor.control for layer in layers.values() if isinstance(layer.processor, _Processor)}
    control = present.pop() if present else AttentionControl()
    for name, layer in layers.items():
        if not isinstance(layer.processor, _Processor):
            layer.set_processor(_Processor(control, name, layer.processor))
    return control


def check_text_width(denoiser: nn.Module, width: int) -> None:
    """Refuse a U-Net whose cross-attention reads text of another width than `width`, the text encoder's.

    Raises:
        InputError: the widths differ.
    """
    for name, module in denoiser.named_modules():
        if name.endswith("attn2") and module.to_k.in_features != width:
            raise InputError(
                f"the backbone's U-Net reads text of width {module.to_k.in_features}, its text encoder gives {width}; "
                "expected the same width: take both from one model"
            )


def attention_sides(denoiser: nn.Module, latent_size: int) -> set[int]:
    """The sides, in places, of the cross-attention layers of a U-Net that halves its latents at each level."""
    deepest = len(denoiser.config.block_out_channels) - 1
    sides = set()
    for name, _ in denoiser.named_modules():
        if name.endswith("attn2"):
            part, number, *_ = name.split(".")
            level = {"down_blocks": int, "up_blocks": lambda count: deepest - int(count)}.get(part, lambda _: deepest)
            sides.add(latent_size >> level(number))
    return sides


@dataclass
class AttentionMaps:
    """Captured attention.

    Attributes:
        layers: (layer name, [B, G, s, s]) for each call of each captured layer: the attention that the layer's s²
            places pay to the tokens of each group, mean over heads, weighted mean over the group's tokens.
    """

    layers: list[tuple[str, Tensor]] = field(default_factory=list)

    def mean(self, side: int) -> Tensor:
        """Mean over layers, each brought to `side` first (bilinear, antialiased downward): [B, G, side, side]."""
        if not self.layers:
            raise ValueError("no attention was captured: no layer ran, or none has a wanted side")
        return torch.stack([resize_map(part, side) for _, part in self.layers]).mean(0)


class AttentionControl:
    """What the cross-attention layers of one U-Net are asked for; shared by their processors."""

    def __init__(self) -> None:
        self._captures: list[_Capture] = []
        self._reweights: list[_Reweight] = []
        self._regions: list[_Regions] = []

    @contextmanager
    def capture(
        self, groups: Tensor, softmax: Softmax = "tokens", sides: Collection[int] | None = None
    ) -> Iterator[AttentionMaps]:
        """Keep the attention maps of groups of tokens; the layers' outputs do not change by it.

        Args:
            groups: [B, G, T], float or bool: the share of each token in each group; a group's map is the mean over
                its tokens with these weights (zero for an empty group).
            softmax: `tokens` normalises each place over all tokens, as attention does; `pixels` each token over all
                places (SeaS, DefectDiffu).
            sides: sides in places of the layers to keep, or None for all.

        What is kept is the attention before any re-weighting, and inside `regions` that to the inside text.
        """
        shares = groups.float()
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
        asked = _Capture(AttentionMaps(), shares, softmax, None if sides is None else frozenset(sides))
        with _pushed(self._captures, asked):
            yield asked.maps

    @contextmanager
    def reweight(self, tokens: Tensor, weights: Weights, where: Where = "probabilities") -> Iterator[None]:
        """Multiply the attention to some tokens by a spatial map.

        Where the weight is exactly 1 the layer's output stays bit for bit what it was.

        Args:
            tokens: bool [B, T].
            weights: [B, 1, h, w], brought to each layer's side as in `resize_map`; or a function from that side s to
                [B, 1, s, s], where resizing needs another rule.
            where: `probabilities` after the softmax, not normalised again (Prompt-to-Prompt, CADiff); `logits`
                before it (AnomalyDiffusion's code).
        """
        with _pushed(self._reweights, _Reweight(tokens, weights, where)):
            yield

    @contextmanager
    def regions(self, outside: Tensor, mask: Tensor) -> Iterator[None]:
        """Read the U-Net's text inside `mask` only, and `outside` around it (disentangled DDIM inversion).

        out = m'·softmax(Q K_in / √d) V_in + (1 − m')·softmax(Q K_out / √d) V_out, m' the mask at the layer's side.

        Args:
            outside: [B, T, D], or [1, T, D] for all.
            mask: [B, 1, h, w] in {0, 1}; max-pooled to each layer, so that nothing is lost.
        """
        with _pushed(self._regions, _Regions(outside, mask)):
            yield


def resize_map(maps: Tensor, side: int) -> Tensor:
    """Maps [B, C, h, w] at `side`, bilinear, antialiased downward; of this size already, they come back unchanged."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", antialias=side < maps.shape[-1])


class _Capture(NamedTuple):
    maps: AttentionMaps
    shares: Tensor
    softmax: Softmax
    sides: frozenset[int] | None


class _Reweight(NamedTuple):
    tokens: Tensor
    weights: Weights
    where: Where


class _Regions(NamedTuple):
    outside: Tensor
    mask: Tensor


@contextmanager
def _pushed(asked: list[Any], request: Any) -> Iterator[None]:
    asked.append(request)
    try:
        yield
    finally:
        asked.pop()


class _Processor:
    """A diffusers attention processor (interface of `diffusers.models.attention_processor`)."""

    def __init__(self, control: AttentionControl, name: str, plain: Any) -> None:
        self.control, self.name, self.plain = control, name, plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        control = self.control
        if not (control._captures or control._reweights or control._regions):
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            raise ValueError("controlled cross-attention takes no attention mask")
        residual = hidden_states
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = _heads(attn.to_q(hidden_states), attn.heads)
        inside = self._attend(attn, query, hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        if control._regions:
            outside_text, mask = control._regions[-1]
            key, value = _key_and_value(attn, outside_text)
            outside = _fused(attn, query, key, value)
            region = resize_mask(mask, round(query.shape[2] ** 0.5)).flatten(2)
            inside = torch.where(region[..., None] > 0.5, inside, outside)
        out = inside.transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def _attend(self, attn: Any, query: Tensor, text: Tensor) -> Tensor:
        side = round(query.shape[2] ** 0.5)
        key, value = _key_and_value(attn, text)
        out = _fused(attn, query, key, value)
        captures = [asked for asked in self.control._captures if asked.sides is None or side in asked.sides]
        if not (captures or self.control._reweights):
            return out
        logits = (query @ key.transpose(-1, -2)).float() * attn.scale
        for asked in captures:
            over = logits.softmax(-1 if asked.softmax == "tokens" else -2).mean(1)
            maps = torch.einsum("bpt,bgt->bgp", over, asked.shares.to(over)).unflatten(2, (side, side))
            asked.maps.layers.append((self.name, maps))
        if self.control._reweights:
            # the change alone is added to the fused result, so that a weight of 1 changes no bit
            change = _reweighted(logits, self.control._reweights, side) - logits.softmax(-1)
            out = out + change.to(value.dtype) @ value
        return out


def _reweighted(logits: Tensor, reweights: list[_Reweight], side: int) -> Tensor:
    for asked in reweights:
        if asked.where == "logits":
            logits = logits * _factor(asked, side, logits)
    probabilities = logits.softmax(-1)
    for asked in reweights:
        if asked.where == "probabilities":
            probabilities = probabilities * _factor(asked, side, probabilities)
    return probabilities


def _factor(asked: _Reweight, side: int, like: Tensor) -> Tensor:
    """[B, 1, positions, T]: the weight for the asked tokens, 1 for the others."""
    weights = asked.weights(side) if callable(asked.weights) else resize_map(asked.weights, side)
    places = weights.to(like).flatten(2)[..., None]
    return torch.where(asked.tokens.bool().to(like.device)[:, None, None, :], places, torch.ones_like(places))


def _key_and_value(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    return _heads(attn.to_k(text), attn.heads), _heads(attn.to_v(text), attn.heads)


def _fused(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (each.expand(len(query), -1, -1, -1) for each in (key, value))  # one text may stand for all
    return F.scaled_dot_product_attention(query, key, value, scale=attn.scale)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
