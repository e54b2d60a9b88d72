"""Capture and control of the cross-attention of a diffusers U-Net: attention maps, re-weighted tokens, text by region.

    control = control_attention(denoiser)
    with control.capture(groups) as maps, control.reweight(tokens, weights):
        noise = denoiser(latents, timestep, text).sample
    maps.mean(16)  # [B, G, 16, 16]

The three context managers combine and nest. Outside of them every layer runs its original processor, bit for bit.
Everything is differentiable and stays on the device. Explicit attention probabilities are computed only in the layers
and during the calls that need them.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defect_core.diffusion.losses import resize_mask
from defect_core.errors import InputError

Softmax = Literal["tokens", "pixels"]
Where = Literal["probabilities", "logits"]
Weights = Tensor | Callable[[int], Tensor]


def control_attention(denoiser: nn.Module) -> "AttentionControl":
    """Return the control of all cross-attention layers (`attn2`) of a diffusers U-Net; each U-Net has one control.

    Args:
        denoiser: the U-Net; the first call replaces the attention processors of its layers.

    Raises:
        InputError: the U-Net has no cross-attention layers.
    """
    layers: dict[str, Any] = {name: module for name, module in denoiser.named_modules() if name.endswith("attn2")}
    if not layers:
        raise InputError(
            "the backbone's U-Net has no cross-attention layers (attn2); expected a text-conditioned one such as "
            "'embedded' or Stable Diffusion 1.5"
        )
    existing = {layer.processor.control for layer in layers.values() if isinstance(layer.processor, _Processor)}
    control = existing.pop() if existing else AttentionControl()
    for name, layer in layers.items():
        if not isinstance(layer.processor, _Processor):
            layer.set_processor(_Processor(control, name, layer.processor))
    return control


def find_attention_control(denoiser: nn.Module) -> "AttentionControl | None":
    """Return the control of a U-Net if `control_attention` was called for it, else None."""
    for name, module in denoiser.named_modules():
        if name.endswith("attn2") and isinstance(module.processor, _Processor):
            return module.processor.control
    return None


def check_text_width(denoiser: nn.Module, width: int) -> None:
    """Check that the cross-attention of a U-Net reads text of the text encoder's width.

    Args:
        denoiser: the U-Net.
        width: of the text encoder's hidden states.

    Raises:
        InputError: the widths differ.
    """
    for name, module in denoiser.named_modules():
        if name.endswith("attn2.to_k") and isinstance(module, nn.Linear) and module.in_features != width:
            raise InputError(
                f"the backbone's U-Net reads text of width {module.in_features}, its text encoder gives {width}; "
                "expected the same width: take both from one model"
            )


def attention_sides(denoiser: Any, latent_size: int) -> set[int]:
    """Return the sides, in positions, of the cross-attention maps of a diffusers U-Net.

    Args:
        denoiser: a U-Net that halves its latents at each level.
        latent_size: side of the latents.
    """
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
        layers: (layer name, [B, G, s, s]) for each call of each captured layer: the attention of the layer's s²
            positions to the tokens of each group, as a mean over heads and a weighted mean over the group's tokens.
    """

    layers: list[tuple[str, Tensor]] = field(default_factory=list)

    def mean(self, side: int) -> Tensor:
        """Return the mean over layers, [B, G, side, side], each layer first resized by `resize_map`.

        Args:
            side: height and width of the result.

        Raises:
            ValueError: nothing was captured.
        """
        if not self.layers:
            raise ValueError("no attention was captured: no layer ran, or none has one of the requested sides")
        return torch.stack([resize_map(layer, side) for _, layer in self.layers]).mean(0)


class AttentionControl:
    """The active captures, re-weightings and regions of one U-Net, shared by the processors of its layers."""

    def __init__(self) -> None:
        self._captures: list[_Capture] = []
        self._reweights: list[_Reweight] = []
        self._regions: list[_Regions] = []

    @contextmanager
    def capture(
        self, groups: Tensor, softmax: Softmax = "tokens", sides: Collection[int] | None = None
    ) -> Iterator[AttentionMaps]:
        """Capture the attention maps of groups of tokens; the outputs of the layers do not change.

        The captured attention is that before any re-weighting, and inside `regions` that to the inside text.

        Args:
            groups: [B, G, T], float or bool: the weight of each token in each group. The map of a group is the mean
                over its tokens with these weights, and zero for an empty group.
            softmax: `tokens` normalises each position over all tokens, as attention does. `pixels` normalises each
                token over all positions (SeaS, DefectDiffu).
            sides: sides of the layers to capture; None is all.
        """
        weights = groups.float()
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        capture = _Capture(AttentionMaps(), weights, softmax, None if sides is None else frozenset(sides))
        with _active(self._captures, capture):
            yield capture.maps

    @contextmanager
    def reweight(self, tokens: Tensor, weights: Weights, where: Where = "probabilities") -> Iterator[None]:
        """Multiply the attention to some tokens by a spatial map; a weight of exactly 1 changes no bit.

        Args:
            tokens: bool [B, T].
            weights: [B, 1, h, w], resized to each layer's side by `resize_map`; or a function of that side s that
                returns [B, 1, s, s].
            where: `probabilities` multiplies after the softmax, without a second normalisation (Prompt-to-Prompt,
                CADiff); `logits` multiplies before the softmax (AnomalyDiffusion's public code).
        """
        with _active(self._reweights, _Reweight(tokens, weights, where)):
            yield

    @contextmanager
    def regions(self, outside: Tensor, mask: Tensor) -> Iterator[None]:
        """Apply the U-Net's text inside `mask` and another text around it (disentangled DDIM inversion).

        out = m'·softmax(Q K_in / √d) V_in + (1 − m')·softmax(Q K_out / √d) V_out, where m' is the mask at the layer's
        side.

        Args:
            outside: the encoded text around the mask, [B, T, D], or [1, T, D] for the whole batch.
            mask: [B, 1, h, w] in {0, 1}; max-pooled to each layer, so that small masks remain.
        """
        with _active(self._regions, _Regions(outside, mask)):
            yield

    def replay(self) -> AbstractContextManager[None]:
        """Return a context with the controls that are active now, for a recomputation in the backward pass.

        The maps that it captures are discarded; those of the forward pass stay as they are.
        """
        captures = [capture._replace(maps=AttentionMaps()) for capture in self._captures]
        return self._restore(captures, list(self._reweights), list(self._regions))

    @contextmanager
    def _restore(
        self, captures: "list[_Capture]", reweights: "list[_Reweight]", regions: "list[_Regions]"
    ) -> Iterator[None]:
        current = self._captures, self._reweights, self._regions
        self._captures, self._reweights, self._regions = captures, reweights, regions
        try:
            yield
        finally:
            self._captures, self._reweights, self._regions = current
            for capture in captures:
                capture.maps.layers.clear()


def resize_map(maps: Tensor, side: int) -> Tensor:
    """Return maps [B, C, h, w] at [B, C, side, side], bilinear, antialiased when reduced.

    Args:
        maps: returned unchanged if they have this side already.
        side: height and width of the result.
    """
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", antialias=side < maps.shape[-1])


class _Capture(NamedTuple):
    maps: AttentionMaps
    weights: Tensor
    softmax: Softmax
    sides: frozenset[int] | None


class _Reweight(NamedTuple):
    tokens: Tensor
    weights: Weights
    where: Where


class _Regions(NamedTuple):
    outside: Tensor
    mask: Tensor


_Control = TypeVar("_Control", _Capture, _Reweight, _Regions)


@contextmanager
def _active(controls: list[_Control], control: _Control) -> Iterator[None]:
    controls.append(control)
    try:
        yield
    finally:
        controls.pop()


class _Processor:
    """An attention processor as in `diffusers.models.attention_processor`; `attn` is a diffusers `Attention`."""

    def __init__(self, control: AttentionControl, name: str, original: Any) -> None:
        self.control, self.name, self.original = control, name, original

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
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            raise ValueError("controlled cross-attention takes no attention mask")
        residual = hidden_states
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        inside = self._attend(attn, query, hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        if control._regions:
            outside_text, mask = control._regions[-1]
            key, value = _key_and_value(attn, outside_text)
            outside = _fused_attention(attn, query, key, value)
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
        out = _fused_attention(attn, query, key, value)
        captures = [capture for capture in self.control._captures if capture.sides is None or side in capture.sides]
        if not (captures or self.control._reweights):
            return out
        logits = (query @ key.transpose(-1, -2)).float() * attn.scale
        for capture in captures:
            probabilities = logits.softmax(-1 if capture.softmax == "tokens" else -2).mean(1)
            maps = torch.einsum("bpt,bgt->bgp", probabilities, capture.weights.to(probabilities))
            capture.maps.layers.append((self.name, maps.unflatten(2, (side, side))))
        if self.control._reweights:
            # Only the change is added to the fused result, so that a weight of 1 changes no bit.
            change = _reweighted_probabilities(logits, self.control._reweights, side) - logits.softmax(-1)
            out = out + change.to(value.dtype) @ value
        return out


def _reweighted_probabilities(logits: Tensor, reweights: list[_Reweight], side: int) -> Tensor:
    for reweight in reweights:
        if reweight.where == "logits":
            logits = logits * _token_factors(reweight, side, logits)
    probabilities = logits.softmax(-1)
    for reweight in reweights:
        if reweight.where == "probabilities":
            probabilities = probabilities * _token_factors(reweight, side, probabilities)
    return probabilities


def _token_factors(reweight: _Reweight, side: int, like: Tensor) -> Tensor:
    """Return [B, 1, positions, T]: the weight for the selected tokens and 1 for the others."""
    weights = reweight.weights
    weights = resize_map(weights, side) if isinstance(weights, Tensor) else weights(side)
    factors = weights.to(like).flatten(2)[..., None]
    return torch.where(reweight.tokens.bool().to(like.device)[:, None, None, :], factors, torch.ones_like(factors))


def _key_and_value(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    return _split_heads(attn.to_k(text), attn.heads), _split_heads(attn.to_v(text), attn.heads)


def _fused_attention(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # One text may serve the whole batch.
    key, value = (each.expand(len(query), -1, -1, -1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=attn.scale)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
