"""SeaS' first stage: what is trained, and its loss (paper §3.2, eq. 3 to 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.data.records import GOOD
from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.schedule import add_noise
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts
from defect_core.generators.seas.alignment import SideMaps, alignment_terms, encoder_maps, mask_pyramid
from defect_core.generators.seas.config import Config
from defect_core.generators.views import to_denoiser
from defect_core.training.loop import bf16_autocast


@dataclass(frozen=True)
class Batch:
    """B defect images, then B normal ones.

    `latents`, `noise` [2B, C, h, w], `times` int64 [2B], `masks` [B, 1, R, R] and `defects` of the first B.
    """

    latents: Tensor
    masks: Tensor
    defects: Sequence[str]
    noise: Tensor
    times: Tensor

    def part(self, start: int, stop: int) -> "Batch":
        """The defect images from `start` to `stop`, and the normal ones at the same places."""
        count = len(self.defects)
        rows = torch.arange(count)[start:stop]
        rows = torch.cat([rows, rows + count])
        masks, defects = self.masks[start:stop], self.defects[start:stop]
        return Batch(self.latents[rows], masks, defects, self.noise[rows], self.times[rows])


class Parts(NamedTuple):
    """The terms of the loss L = L_df + L_ob: eq. 4 (noise and alignment) and eq. 5; `maps` is what was aligned."""

    defect_noise: Tensor
    alignment: Tensor
    normal_noise: Tensor
    maps: SideMaps
    masks: dict[int, Tensor]

    @property
    def total(self) -> Tensor:
        return self.defect_noise + self.alignment + self.normal_noise


class Words(nn.Module):
    """The learned words of one product: one for the normal product, N for each defect.

    Args:
        tokens: named `good` and by defect.
    """

    def __init__(self, tokens: ConceptTokens, config: Config) -> None:
        super().__init__()
        self.tokens, self._config = tokens, config

    @classmethod
    def begin(cls, backbone: Backbone, defects: Sequence[str], config: Config) -> "Words":
        normal = ConceptTokens.from_word(backbone, {GOOD: 1}, config.normal_word)
        counts = dict.fromkeys(defects, config.anomaly_tokens)
        anomalies = ConceptTokens.from_word(backbone, counts, config.anomaly_word)
        return cls(ConceptTokens({**normal.vectors, **anomalies.vectors}), config)

    def encode(self, backbone: Backbone, kinds: Sequence[Sequence[str]]) -> EncodedPrompts:
        """The prompt of each image: "a ⟨ob⟩ with ⟨df_1⟩ … ⟨df_N⟩" for its defects, "a ⟨ob⟩" where there are none.

        Several defects put all their words into one prompt, in order: an unseen defect from known attributes. The
        slots are named `product` and `defect`. Equal prompts are encoded once.
        """
        unique = list(dict.fromkeys(tuple(kind) for kind in kinds))
        prompts, vectors = [], []
        for kind in unique:
            given = {"product": self.tokens[GOOD]}
            if kind:
                given["defect"] = torch.cat([self.tokens[name] for name in kind])
            prompts.append(self._config.defect_prompt if kind else self._config.normal_prompt)
            vectors.append(given)
        encoded = encode_prompts(backbone, prompts, vectors)
        rows = [unique.index(tuple(kind)) for kind in kinds]
        return EncodedPrompts(encoded.states[rows], [encoded.spans[row] for row in rows])


def token_groups(prompts: EncodedPrompts) -> Tensor:
    """float [B, 2, T]: the anomaly tokens and the normal token of each prompt, for `AttentionControl.capture`."""
    groups = torch.zeros(len(prompts.spans), 2, prompts.states.shape[1], device=prompts.states.device)
    for row, spans in zip(groups, prompts.spans, strict=True):
        for index, slot in enumerate(("defect", "product")):
            if slot in spans:
                row[index, spans[slot]] = 1
    return groups


def finetune_loss(
    backbone: Backbone,
    words: Words,
    control: AttentionControl,
    sides: Sequence[int],
    batch: Batch,
    config: Config,
    prompts: EncodedPrompts | None = None,
) -> Parts:
    """All terms of eq. 6 from one call of the U-Net on the mixed batch.

    In the form `paper` every norm of eq. 3 to 5 is divided by the C·h·w elements of one latent, which changes nothing
    of what is learned and lets the noise loss be the usual mean. In the form `compat` each norm is a mean of its own.

    Args:
        sides: of the attention layers that are aligned.
        prompts: of the 2B images, `words.encode` if None.
    """
    count = len(batch.defects)
    if prompts is None:
        prompts = words.encode(backbone, [(d,) for d in batch.defects] + [()] * (len(batch.latents) - count))
    levels = backbone.schedule[batch.times]
    latents, noise = to_denoiser(backbone, batch.latents), to_denoiser(backbone, batch.noise)
    softmax = "tokens" if config.alignment == "paper" else "pixels"
    with (
        bf16_autocast(backbone.device, backbone.latent_size),
        control.capture(token_groups(prompts), softmax, sides) as captured,
    ):
        noised, times = add_noise(latents, noise, levels), to_denoiser(backbone, batch.times)
        predicted = backbone.denoiser(noised, times, prompts.states).sample
    maps = encoder_maps(captured.layers, count)
    masks = mask_pyramid(to_denoiser(backbone, batch.masks), backbone.latent_size, maps.anomaly, config.alignment)
    aligned = torch.stack(alignment_terms(maps, masks, config.alignment)).sum()
    if config.alignment == "paper":
        aligned = aligned / latents[0].numel()
    weight = levels.rsqrt() if config.noise_weighting == "velocity" else torch.ones_like(levels)
    weight = to_denoiser(backbone, weight)[:, None, None, None]
    noise, predicted = weight * noise, weight * predicted.float()
    return Parts(
        _defect_noise(noise[:count], predicted[:count], batch.masks, config),
        config.alignment_weight * aligned,
        noise_loss(noise[count:], predicted[count:]),
        maps,
        masks,
    )


def _defect_noise(noise: Tensor, predicted: Tensor, masks: Tensor, config: Config) -> Tensor:
    """The first term of eq. 4: the mean over the image, or the mean of the means inside and outside the mask."""
    if config.balance == "image":
        return noise_loss(noise, predicted)
    inside = resize_mask(masks, noise.shape[-1], "max").to(noise)
    return sum(noise_loss(noise, predicted, part, "masked_mean") for part in (inside, 1 - inside)) / 2
