"""Prompt embeddings, and the U-Net with masked cross-attention to them (section 3.3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import AttentionControl, resize_map
from defect_core.diffusion.guidance import combine_guidance
from defect_core.generators.disentangled_inversion.config import DisentangledInversionConfig
from defect_core.generators.views import prompt_words

FINEST_SIDES = 2  # number of the finest sides of cross-attention maps that are kept by default


class PromptEmbeddings(NamedTuple):
    """Text embeddings of the prompts of one product.

    Attributes:
        defect: C_def of each defect, [G, T, D].
        background: C_bg, [1, T, D].
        hole: C_m, [1, T, D].
        defect_tokens: which tokens of C_def are the name of the defect, bool [G, T].
    """

    defect: Tensor
    background: Tensor
    hole: Tensor
    defect_tokens: Tensor


def format_defect_prompt(config: DisentangledInversionConfig, product: str, defect: str) -> str:
    """Return the text of C_def."""
    return config.defect_prompt.format(defect=prompt_words(defect), product=prompt_words(product))


def encode_prompts(
    backbone: Backbone, config: DisentangledInversionConfig, product: str, defects: Sequence[str]
) -> PromptEmbeddings:
    """Return the text embeddings for a product and its defects."""
    prompts = [format_defect_prompt(config, product, defect) for defect in defects]
    with torch.no_grad():
        embeddings = backbone.encode_text(prompts)
        background = backbone.encode_text([config.background_prompt.format(product=prompt_words(product))])
        hole = backbone.encode_text([config.hole_prompt])
    defect_tokens = [
        _find_tokens(backbone.tokenizer, prompt, prompt_words(defect), embeddings.shape[1])
        for prompt, defect in zip(prompts, defects, strict=True)
    ]
    return PromptEmbeddings(embeddings, background, hole, torch.stack(defect_tokens).to(embeddings.device))


@dataclass
class MaskedDenoiser:
    """The U-Net with masked cross-attention (eq. 10 and 11) for one batch.

    Attributes:
        backbone: the diffusion backbone.
        control: control of the U-Net's cross-attention.
        prompts: text embeddings; `defect` and `defect_tokens` have one row per sample.
        mask: m, [B, 1, h, w].
        guidance_scale: weight of classifier-free guidance in the defect branch; 1 disables it.
        captures_attention: whether `predict_defect` keeps the attention maps of the defect tokens.
        sides: sides of the layers whose maps are kept; empty: the two finest.
        attention_maps: the kept maps, each [B, h, w].
    """

    backbone: Backbone
    control: AttentionControl
    prompts: PromptEmbeddings
    mask: Tensor
    guidance_scale: float
    captures_attention: bool
    sides: tuple[int, ...] = ()
    attention_maps: list[Tensor] = field(default_factory=list)

    def predict_background(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return ε_θ(z_t^m, t, C_2)."""
        with self.control.regions(self.prompts.background, self.mask):
            return self._predict(latents, timestep, self.prompts.hole)

    def predict_defect(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return ε_θ(z*_t, t, C_1), with guidance relative to C_2 (not in the paper)."""
        with self.control.regions(self.prompts.background, self.mask):
            if self.captures_attention:
                with self.control.capture(self.prompts.defect_tokens[:, None], sides=self.sides or None) as captured:
                    noise = self._predict(latents, timestep, self.prompts.defect)
                maps = [layer_map[:, 0].to(latents) for _, layer_map in captured.layers]
                self.attention_maps.extend(_resize_maps(maps, self.mask.shape[-1], self.sides))
            else:
                noise = self._predict(latents, timestep, self.prompts.defect)
        if self.guidance_scale == 1:
            return noise
        return combine_guidance(self.predict_background(latents, timestep), (self.guidance_scale, noise))

    def _predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.backbone.denoiser(latents, timestep.to(latents.device), text).sample.to(latents.dtype)


def _find_tokens(tokenizer: Any, prompt: str, name: str, length: int) -> Tensor:
    """Return which tokens of a prompt are the name, bool [length]. Token 0 is the start token."""
    before = tokenizer(prompt[: prompt.index(name)].strip(), add_special_tokens=False)["input_ids"]
    tokens = tokenizer(name, add_special_tokens=False)["input_ids"]
    is_name = torch.zeros(length, dtype=torch.bool)
    is_name[1 + len(before) : 1 + len(before) + len(tokens)] = True
    return is_name


def _resize_maps(maps: list[Tensor], side: int, sides: tuple[int, ...]) -> list[Tensor]:
    """Return the attention maps of some sides, by default of the finest, resized to [B, side, side]."""
    kept = sides or sorted({layer_map.shape[-1] for layer_map in maps})[-FINEST_SIDES:]
    return [resize_map(layer_map[:, None], side)[:, 0] for layer_map in maps if layer_map.shape[-1] in kept]
