"""Trained networks of CADiff (tokens, control branch, optionally the U-Net) and the loss of a training step (eq. 8)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import AttentionMaps, control_attention
from defect_core.diffusion.losses import mean_over_samples, noise_loss
from defect_core.diffusion.schedule import add_noise
from defect_core.diffusion.tokens import ConceptTokens, EncodedPrompts, encode_prompts
from defect_core.generators.cadiff.attention_reweighting import masked_focus_weights
from defect_core.generators.cadiff.config import CADiffConfig
from defect_core.generators.cadiff.control_branch import ControlBranch, hint_image
from defect_core.generators.cadiff.losses import contrastive_disentanglement_loss, localizing_masked_loss
from defect_core.training.precision import training_autocast

CONTEXT = "context"


class TrainingBatch(NamedTuple):
    """Images of one training step.

    Attributes:
        latents: clean latents z_0, [B, C, h, w].
        masks: masks at the latents' size, [B, 1, h, w] in {0, 1}.
        canvas_masks: the same masks at the canvas' resolution, [B, 1, R, R] in {0, 1}.
        defects: index of each image's defect, int64 [B].
        noise: standard normal noise ε, [B, C, h, w].
        timesteps: int64 [B].
        templates: prompt template of each image.
        is_defective: bool [B], on the CPU. False is a normal image, conditioned on the defect at intensity 0.
    """

    latents: Tensor
    masks: Tensor
    canvas_masks: Tensor
    defects: Tensor
    noise: Tensor
    timesteps: Tensor
    templates: Sequence[str]
    is_defective: Tensor

    def select(self, start: int, stop: int) -> "TrainingBatch":
        """Return the images from `start` to `stop`."""
        return TrainingBatch._make(field[start:stop] for field in self)


class LossTerms(NamedTuple):
    """The three terms of eq. 8, scalars without their weights.

    Attributes:
        noise: noise loss L_CALDM (eq. 4).
        localising: localizing masked loss (eq. 5); 0 if its weight is 0.
        contrast: contrastive disentanglement loss (eq. 7); 0 if its weight is 0.
    """

    noise: Tensor
    localising: Tensor
    contrast: Tensor


class CADiffModel(nn.Module):
    """Tokens and control branch of one product. The networks of the backbone are used but are no submodules.

    Args:
        backbone: the backbone.
        config: settings; with `tune_denoiser` the U-Net is a submodule, too.
        defect_count: number of defects, each of which gets one anomaly token.
        seed: decides the weights of the new layers.
    """

    def __init__(self, backbone: Backbone, config: CADiffConfig, defect_count: int, seed: int) -> None:
        super().__init__()
        counts = {CONTEXT: 1, **{_slot(index): 1 for index in range(defect_count)}}
        self.tokens = ConceptTokens.from_init_word(backbone, counts, config.init_word)
        self.control = ControlBranch(backbone.denoiser, config.self_adaptive_interaction, seed)
        if config.tune_denoiser:
            self.denoiser = backbone.denoiser
        self.config, self.defect_count = config, defect_count
        self.to(backbone.device)
        self._backbone = [backbone]  # A list keeps torch from registering the backbone's networks as submodules.

    @property
    def backbone(self) -> Backbone:
        """The backbone whose networks the model uses."""
        return self._backbone[0]

    def encode(self, templates: Sequence[str], defects: Sequence[Sequence[int]]) -> EncodedPrompts:
        """Encode context-aware text prompts: the context token and the anomaly tokens of each prompt's defects."""
        prompts = [
            template.format(context=f"{{{CONTEXT}}}", anomaly=" and ".join(f"{{{_slot(n)}}}" for n in indices))
            for template, indices in zip(templates, defects, strict=True)
        ]
        return encode_prompts(self.backbone, prompts, [self.tokens.embeddings] * len(prompts))

    def predict_noise(self, latents: Tensor, timesteps: Tensor, text: Tensor, masks: Tensor) -> Tensor:
        """Return the noise that the U-Net predicts under the control of masks [B, 1, R, R]; see `ControlBranch`."""
        backbone = self.backbone
        hint = hint_image(masks, backbone.latent_size).to(latents)
        return self.control.predict_noise(backbone.denoiser, latents, timesteps, text, hint, self.config.control_scale)

    def loss(self, batch: TrainingBatch, generator: torch.Generator, use_bf16: bool = False) -> Tensor:
        """Return L = L_CALDM + γ·L_loc + β·L_contrastive (eq. 8), a scalar; arguments as in `loss_terms`."""
        return self._weighted_sum(self.loss_terms(batch, generator, use_bf16))

    def part_losses(
        self, batch: TrainingBatch, generator: torch.Generator, parts: int, use_bf16: bool = False
    ) -> Iterator[Tensor]:
        """Yield the losses of consecutive parts of a batch, which add up to `loss` of the batch.

        Args:
            batch: images of the step.
            generator: as in `loss_terms`.
            parts: number of parts; at most as many as images are used.
            use_bf16: as in `loss_terms`.
        """
        for rows in torch.arange(len(batch.latents)).chunk(parts):
            part = batch.select(int(rows[0]), int(rows[-1]) + 1)
            yield self._weighted_sum(self.loss_terms(part, generator, use_bf16, batch, has_contrast=int(rows[0]) == 0))

    def _weighted_sum(self, terms: LossTerms) -> Tensor:
        return (
            terms.noise
            + self.config.localising_weight * terms.localising
            + self.config.contrast_weight * terms.contrast
        )

    def loss_terms(
        self,
        batch: TrainingBatch,
        generator: torch.Generator,
        use_bf16: bool = False,
        whole: TrainingBatch | None = None,
        has_contrast: bool = True,
    ) -> LossTerms:
        """Return the terms of the loss of one training step.

        Args:
            batch: images of the step.
            generator: chooses the templates of the contrastive disentanglement loss.
            use_bf16: run the U-Net in half precision where the device supports it.
            whole: the batch of which `batch` is a part: the terms of all parts add up to those of the batch.
            has_contrast: False leaves out the contrastive loss, which does not depend on the images.
        """
        config, backbone = self.config, self.backbone
        noised = self._add_noise(batch)
        encoded = self.encode(batch.templates, [[index] for index in batch.defects.tolist()])
        groups = token_groups(encoded, [[CONTEXT, _slot(index)] for index in batch.defects.tolist()])
        maps = AttentionMaps()
        with ExitStack() as stack:
            if config.localising_weight > 0:
                control = control_attention(backbone.denoiser)
                maps = stack.enter_context(control.capture(groups, sides=config.loss_sides or None))
            if not batch.is_defective.all():
                weights = masked_focus_weights(batch.masks, batch.is_defective, ~batch.is_defective)
                self.reweight(stack, groups[:, 1] > 0, weights)
            if use_bf16:
                autocast = training_autocast(backbone.device, backbone.latent_size, compute=backbone.compute)
                stack.enter_context(autocast)
            predicted = self.predict_noise(noised, batch.timesteps, encoded.states, batch.canvas_masks).float()
        whole = batch if whole is None else whole
        noise = self._noise_loss(batch, predicted, whole)
        localising = contrast = predicted.new_zeros(())
        if config.localising_weight > 0 and batch.is_defective.any():
            fraction = float(batch.is_defective.sum() / whole.is_defective.sum())
            defective = AttentionMaps([(name, part[batch.is_defective]) for name, part in maps.layers])
            masks = batch.masks[batch.is_defective]
            localising = fraction * localizing_masked_loss(defective, masks, config.localising)
        if config.contrast_weight > 0 and has_contrast:
            contrast = self._contrastive_loss(generator)
        return LossTerms(noise, localising, contrast)

    def anomaly_attention(self, batch: TrainingBatch, side: int) -> Tensor:
        """Return the attention to each image's anomaly token in the U-Net's layers of a side, [B, 1, side, side]."""
        encoded = self.encode(batch.templates, [[index] for index in batch.defects.tolist()])
        groups = token_groups(encoded, [[_slot(index)] for index in batch.defects.tolist()])
        noised = self._add_noise(batch)
        with control_attention(self.backbone.denoiser).capture(groups, sides={side}) as maps:
            self.predict_noise(noised, batch.timesteps, encoded.states, batch.canvas_masks)
        return maps.mean(side)

    def reweight(self, stack: ExitStack, tokens: Tensor, weights: Callable[[int], Tensor]) -> None:
        """Re-weight the attention to tokens in the U-Net and the control branch until `stack` is closed.

        Args:
            stack: holds the two context managers.
            tokens: which tokens are re-weighted, bool [B, T].
            weights: as in `AttentionControl.reweight`.
        """
        for network in (self.backbone.denoiser, self.control.net):
            stack.enter_context(control_attention(network).reweight(tokens, weights))

    def _add_noise(self, batch: TrainingBatch) -> Tensor:
        alphas_cumprod = self.backbone.alphas_cumprod[batch.timesteps.cpu()]
        return add_noise(batch.latents, batch.noise, alphas_cumprod)

    def _noise_loss(self, batch: TrainingBatch, predicted: Tensor, whole: TrainingBatch) -> Tensor:
        """Return the mean over the image, or the mean of the means inside and outside each mask (see `balance`)."""
        if self.config.balance == "image":
            return noise_loss(batch.noise, predicted) * (len(batch.latents) / len(whole.latents))
        squares = (batch.noise - predicted) ** 2
        inside, outside = (
            mean_over_samples(region * squares, region, whole_region)
            for region, whole_region in ((batch.masks, whole.masks), (1 - batch.masks, 1 - whole.masks))
        )
        return (inside + outside) / 2

    def _contrastive_loss(self, generator: torch.Generator) -> Tensor:
        """Return the contrastive loss of the text encoder's outputs at the positions of the tokens.

        The token embeddings themselves are equal in every view. Their outputs differ between templates.
        """
        views, count, templates = self.config.contrast_views, self.defect_count, self.config.templates
        choices = torch.randint(len(templates), (views,), generator=generator).tolist()
        prompts = [templates[choice] for choice in choices for _ in range(count)]
        encoded = self.encode(prompts, [[index] for _ in range(views) for index in range(count)])
        positions = [encoded.spans[i][_slot(i % count)].start for i in range(views * count)]
        rows = torch.arange(views * count, device=encoded.states.device)
        anomalies = encoded.states[rows, positions].unflatten(0, (views, count))
        # The context vector of each view comes from the prompt of one defect, another one in each view.
        prompt_rows = [view * count + view % count for view in range(views)]
        contexts = torch.stack([encoded.states[i, encoded.spans[i][CONTEXT].start] for i in prompt_rows])
        vectors = torch.cat([contexts[:, None], anomalies], 1)
        return contrastive_disentanglement_loss(vectors, self.config.temperature)


def token_groups(encoded: EncodedPrompts, slots: Sequence[Sequence[str | None]]) -> Tensor:
    """Return which tokens each slot of each prompt covers, float [B, G, T] in {0, 1}.

    Args:
        encoded: B encoded prompts.
        slots: G slots of each prompt; None is an empty group.
    """
    groups = torch.zeros(len(slots), max(len(names) for names in slots), encoded.states.shape[1])
    for row, names in enumerate(slots):
        for column, name in enumerate(names):
            if name is not None:
                groups[row, column, encoded.spans[row][name]] = 1
    return groups.to(encoded.states.device)


def anomaly_slots(defects: Sequence[int], count: int) -> list[str | None]:
    """Return the slots of a prompt's anomaly tokens, padded with None to `count`."""
    return [*(_slot(index) for index in defects), *[None] * (count - len(defects))]


def _slot(index: int) -> str:
    return f"anomaly_{index}"
