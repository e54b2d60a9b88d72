"""The trained parts of CADiff (tokens, control branch, on demand the U-Net) and the loss of one step."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.diffusion.attention import AttentionMaps, control_attention
from defect_core.diffusion.losses import noise_loss
from defect_core.diffusion.schedule import add_noise
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts
from defect_core.generators.cadiff.config import Config
from defect_core.generators.cadiff.control import ControlBranch, hint_image
from defect_core.generators.cadiff.intensity import spatial_weights
from defect_core.generators.cadiff.objective import contrast_loss, localising_loss
from defect_core.training.loop import bf16_autocast

CONTEXT = "context"


class Batch(NamedTuple):
    """One training step's examples: `latents` z_0 [B, C, h, w]; `masks` [B, 1, h, w] and `images` of the masks
    [B, 1, R, R], both {0, 1}; `defects` int64 [B]; `noise` ε; `times` int64 [B]; `templates`, one for each; `shown`
    bool [B], False for a good image, which is told of a defect at intensity 0."""

    latents: Tensor
    masks: Tensor
    images: Tensor
    defects: Tensor
    noise: Tensor
    times: Tensor
    templates: Sequence[str]
    shown: Tensor


class Terms(NamedTuple):
    """The three losses, scalars; `contrast` and `localising` are 0 where their weight is."""

    noise: Tensor
    localising: Tensor
    contrast: Tensor


class Model(nn.Module):
    """Tokens and control branch of one product; the backbone's own networks are used, but are not part of it."""

    def __init__(self, backbone: Backbone, config: Config, defect_count: int, seed: int) -> None:
        super().__init__()
        counts = {CONTEXT: 1, **{_slot(number): 1 for number in range(defect_count)}}
        self.tokens = ConceptTokens.from_word(backbone, counts, config.init_word)
        self.control = ControlBranch(backbone.denoiser, config.joining, seed)
        if config.tune_denoiser:
            self.denoiser = backbone.denoiser
        self.config, self.defect_count = config, defect_count
        self._backbone = [backbone]  # in a list, so that its networks do not become part of this module

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    def encode(self, templates: Sequence[str], defects: Sequence[Sequence[int]]) -> EncodedPrompts:
        """Texts of one context and one or several anomaly tokens each."""
        prompts = [
            template.format(context=f"{{{CONTEXT}}}", anomaly=" and ".join(f"{{{_slot(n)}}}" for n in numbers))
            for template, numbers in zip(templates, defects, strict=True)
        ]
        return encode_prompts(self.backbone, prompts, [self.tokens.vectors] * len(prompts))

    def predict(self, latents: Tensor, times: Tensor, text: Tensor, images: Tensor) -> Tensor:
        """The controlled U-Net's noise; `images` are masks [B, 1, R, R]."""
        backbone = self.backbone
        hint = hint_image(images, backbone.latent_size).to(latents)
        return self.control.predict(backbone.denoiser, latents, times, text, hint, self.config.control_scale)

    def terms(self, batch: Batch, generator: torch.Generator, reduced: bool = False) -> Terms:
        """The losses of one step; `generator` draws the contrast's templates, `reduced` runs the U-Net in bfloat16."""
        config, backbone = self.config, self.backbone
        noised = add_noise(batch.latents, batch.noise, backbone.schedule[batch.times.cpu()])
        encoded = self.encode(batch.templates, [[number] for number in batch.defects.tolist()])
        groups = token_groups(encoded, [[CONTEXT, _slot(number)] for number in batch.defects.tolist()])
        maps = AttentionMaps()
        with ExitStack() as asked:
            if config.localising_weight > 0:
                control = control_attention(backbone.denoiser)
                maps = asked.enter_context(control.capture(groups, sides=config.loss_sides or None))
            if not batch.shown.all():
                self.reweight(asked, groups[:, 1] > 0, spatial_weights(batch.masks, batch.shown, ~batch.shown))
            asked.enter_context(
                bf16_autocast(batch.latents.device, batch.latents.shape[-1]) if reduced else nullcontext()
            )
            predicted = self.predict(noised, batch.times, encoded.states, batch.images).float()
        seen = AttentionMaps([(name, part[batch.shown]) for name, part in maps.layers])
        zero = predicted.new_zeros(())
        return Terms(
            self._noise(batch, predicted),
            localising_loss(seen, batch.masks[batch.shown], config.localising)
            if config.localising_weight > 0
            else zero,
            self._contrast(generator) if config.contrast_weight > 0 else zero,
        )

    def attention(self, batch: Batch, side: int) -> Tensor:
        """What the U-Net's layers of `side` pay to each example's anomaly token, [B, 1, side, side]."""
        encoded = self.encode(batch.templates, [[number] for number in batch.defects.tolist()])
        groups = token_groups(encoded, [[_slot(number)] for number in batch.defects.tolist()])
        noised = add_noise(batch.latents, batch.noise, self.backbone.schedule[batch.times.cpu()])
        with control_attention(self.backbone.denoiser).capture(groups, sides={side}) as maps:
            self.predict(noised, batch.times, encoded.states, batch.images)
        return maps.mean(side)

    def reweight(self, asked: ExitStack, tokens: Tensor, weights: Callable[[int], Tensor]) -> None:
        """Until `asked` ends, weigh the attention to tokens (bool [B, T]) in the U-Net and in the control branch, which
        reads the same text; arguments as in `AttentionControl.reweight`."""
        for network in (self.backbone.denoiser, self.control.net):
            asked.enter_context(control_attention(network).reweight(tokens, weights))

    def loss(self, batch: Batch, generator: torch.Generator, reduced: bool = False) -> Tensor:
        """L = L_noise + γ·L_localising + β·L_contrast (eq. 8); arguments as in `terms`."""
        terms = self.terms(batch, generator, reduced)
        return (
            terms.noise
            + self.config.localising_weight * terms.localising
            + self.config.contrast_weight * terms.contrast
        )

    def _noise(self, batch: Batch, predicted: Tensor) -> Tensor:
        """The mean over the image, or the mean of the means inside and outside the mask."""
        if self.config.balance == "image":
            return noise_loss(batch.noise, predicted)
        parts = [noise_loss(batch.noise, predicted, part, "masked_mean") for part in (batch.masks, 1 - batch.masks)]
        return sum(parts) / 2

    def _contrast(self, generator: torch.Generator) -> Tensor:
        """Of the text encoder's outputs at the tokens' positions: the tokens themselves are equal in every view."""
        views, count, templates = self.config.contrast_views, self.defect_count, self.config.templates
        drawn = torch.randint(len(templates), (views,), generator=generator).tolist()
        chosen = [templates[number] for number in drawn for _ in range(count)]
        encoded = self.encode(chosen, [[number] for _ in range(views) for number in range(count)])
        places = [encoded.spans[i][_slot(i % count)].start for i in range(views * count)]
        rows = torch.arange(views * count, device=encoded.states.device)
        anomalies = encoded.states[rows, places].unflatten(0, (views, count))
        # the context's own vector from the text of one defect, another in each view
        picked = [view * count + view % count for view in range(views)]
        contexts = torch.stack([encoded.states[i, encoded.spans[i][CONTEXT].start] for i in picked])
        return contrast_loss(torch.cat([contexts[:, None], anomalies], 1), self.config.temperature)


def token_groups(encoded: EncodedPrompts, slots: Sequence[Sequence[str | None]]) -> Tensor:
    """Which tokens each slot of each prompt covers, float {0, 1} [B, G, T]; None is an empty group."""
    groups = torch.zeros(len(slots), max(len(names) for names in slots), encoded.states.shape[1])
    for row, names in enumerate(slots):
        for column, name in enumerate(names):
            if name is not None:
                groups[row, column, encoded.spans[row][name]] = 1
    return groups.to(encoded.states.device)


def anomaly_slots(defects: Sequence[int], count: int) -> list[str | None]:
    """Slots of the anomaly tokens of one prompt, filled up with None to `count`."""
    return [*(_slot(number) for number in defects), *[None] * (count - len(defects))]


def _slot(number: int) -> str:
    return f"anomaly_{number}"
