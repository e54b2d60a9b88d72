"""The generator SeaS: one U-Net, its tokens and its RMP branch per product; generates pairs and normal images.

Training is in `training.py`, sampling in `sampling.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.data.records import GOOD
from defect_core.diffusion.attention import check_text_width, control_attention
from defect_core.diffusion.mask_rules import select_strongest
from defect_core.diffusion.tokens import ConceptTokens
from defect_core.errors import InputError
from defect_core.generators.base import (
    CheckedRequest,
    Example,
    Image,
    SampleRequest,
    SyntheticPair,
    check_request,
)
from defect_core.generators.canvas import Window, choose_window, crop_image, dilate_in_window, resize_to_window
from defect_core.generators.composite import composite
from defect_core.generators.seas.config import CAPABILITIES, SeasConfig
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt
from defect_core.generators.seas.refined_mask_prediction import RefinedMaskPrediction
from defect_core.generators.seas.sampling import Conditioning, TokenRegion, sample_images
from defect_core.generators.seas.training import SeasTrainer, TrainingViews
from defect_core.generators.trained import SavedGenerator, TrainedGenerator, load_frozen
from defect_core.generators.views import latent_masks, to_denoiser, to_pixels, to_tensor

EMPTY_MASK_FRACTION = 0.005  # fraction of the window's pixels in the mask where no probability exceeds the threshold
MIDDLE_GREY = 127.5  # what `to_pixels` makes of 0


class Seas(TrainedGenerator[SeasConfig]):
    """SeaS (Dai et al. 2025). The whole U-Net and the tokens are trained; VAE and text encoder stay frozen."""

    name = "seas"
    capabilities = CAPABILITIES
    config_class = SeasConfig

    def __init__(self, backbone: Backbone, config: SeasConfig, product: str = "", defects: Sequence[str] = ()) -> None:
        super().__init__(backbone, config)
        _check_encoder_attention(backbone)
        check_text_width(backbone.denoiser, backbone.text_encoder.config.hidden_size)
        self.product, self.defects = product, tuple(defects)
        self.prompt = self._create_prompt()
        self.branch = RefinedMaskPrediction.for_backbone(backbone, config)

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Train the U-Net with its tokens, then the RMP branch; see `Generator.fit`.

        Raises:
            InputError: no defect example, or no normal example.
        """
        defective = self.defective_examples(examples)
        normal = [example for example in examples if example.mask is None]
        if not normal:
            raise InputError(f"{self.name}: no normal examples to learn from; expected at least one")
        self.product = defective[0].product
        self.defects = tuple(sorted({example.defect for example in defective}))
        self.prompt = self._create_prompt()
        views = TrainingViews(self.backbone, self.config, defective, normal, seed)
        trainer = SeasTrainer(self.backbone, self.config, self.product, self.prompt, self.branch, views, seed)
        losses, attention_iou = trainer.train_unet(work_dir / "unet")
        mask_losses = trainer.train_mask_branch(work_dir / "mask")
        self.training = {"attention_iou": attention_iou, "loss": losses, "mask_loss": mask_losses}

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request. The mask is predicted; `a+b` puts the tokens of two defects into one prompt."""
        if not requests:
            return
        config, backbone = self.config, self.backbone
        plans = [self._plan(request) for request in requests]
        canvases = [crop_image(plan.request.normal_image, plan.window, backbone.resolution) for plan in plans]
        conditioning = self._encode_prompts([plan.defects for plan in plans], self._token_region(plans))
        references = to_denoiser(backbone, to_tensor(canvases))
        seeds = [plan.request.seed for plan in plans]
        sampled = sample_images(backbone, references, conditioning, seeds, config, self.branch)
        if sampled.masks is None:
            raise ValueError("sampling with an RMP branch returned no masks")
        images, masks = to_pixels(sampled.images), sampled.masks.float().cpu().numpy()
        if config.adds_residual:
            images -= MIDDLE_GREY  # 0 is no change
        for plan, image, mask in zip(plans, images, masks, strict=True):
            yield self._make_pair(plan, image, mask)

    def generate_normals(self, seeds: Sequence[int], references: Sequence[Image]) -> Iterator[Image]:
        """Yield one normal image per seed, each started from one of the references in turn; see `Generator`."""
        if not references:
            raise InputError(f"{self.name}: no normal images to start from; expected at least one")
        config, backbone = self.config, self.backbone
        conditioning = self._encode_prompts([()])
        for start in range(0, len(seeds), config.batch_size):
            batch_seeds = seeds[start : start + config.batch_size]
            batch = [references[(start + index) % len(references)] for index in range(len(batch_seeds))]
            windows = [Window(0, 0, *image.shape[:2]) for image in batch]
            canvases = [crop_image(i, w, backbone.resolution) for i, w in zip(batch, windows, strict=True)]
            repeated = conditioning._replace(prompts=conditioning.prompts.expand(len(batch), -1, -1))
            canvas_tensor = to_denoiser(backbone, to_tensor(canvases))
            sampled = sample_images(backbone, canvas_tensor, repeated, batch_seeds, config)
            for window, pixels in zip(windows, to_pixels(sampled.images), strict=True):
                yield np.clip(np.rint(resize_to_window(pixels, window)), 0, 255).astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        """Return product and defects."""
        return {"product": self.product, "defects": list(self.defects)}

    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights of U-Net, tokens and RMP branch."""
        tokens = self.prompt.tokens.embeddings
        return {
            "unet": self.backbone.denoiser.state_dict(),
            "tokens": {name: tokens[name] for name in (GOOD, *self.defects)},
            "mask_branch": self.branch.state_dict(),
        }

    @classmethod
    def restore(cls, backbone: Backbone, config: SeasConfig, saved: SavedGenerator) -> "Seas":
        """Return the fitted generator from a saved folder."""
        generator = cls(backbone, config, saved.description["product"], saved.description["defects"])
        prompt = UnbalancedAbnormalPrompt(ConceptTokens(saved.state_dict("tokens")), config)
        generator.prompt = prompt.requires_grad_(False).to(backbone.device)
        load_frozen(backbone.denoiser, saved.state_dict("unet"))
        load_frozen(generator.branch, saved.state_dict("mask_branch"))
        return generator

    def _create_prompt(self) -> UnbalancedAbnormalPrompt:
        prompt = UnbalancedAbnormalPrompt.from_init_words(self.backbone, self.defects, self.config)
        return prompt.to(self.backbone.device)

    def _encode_prompts(self, defect_sets: Sequence[Sequence[str]], region: TokenRegion | None = None) -> Conditioning:
        with torch.no_grad():
            prompts = self.prompt.encode(self.backbone, defect_sets).states
            return Conditioning(prompts, self.backbone.encode_text([""]), region)

    def _plan(self, request: SampleRequest) -> "_SamplePlan":
        """Return the defects and the window of a request.

        Raises:
            InputError: the request cannot be answered.
        """
        defects = (request.defect,) if request.defect in self.defects else tuple(request.defect.split("+"))
        checked = [check_request(dataclasses.replace(request, defect=defect), self.defects) for defect in defects]
        config = self.config
        window = choose_window(checked[0].mask, config.canvas, config.context, config.min_side)
        return _SamplePlan(checked[0], defects, window)

    def _token_region(self, plans: Sequence["_SamplePlan"]) -> TokenRegion | None:
        """Return the dilated request masks on the grid of the latents; None if the tokens are not restricted."""
        if self.config.mask_dilation is None:
            return None
        backbone, radius = self.backbone, self.config.mask_dilation
        dilated = [dilate_in_window(p.request.mask, p.window, radius, backbone.resolution) for p in plans]
        with torch.no_grad():
            normal_prompt = self.prompt.encode(backbone, [()]).states
        return TokenRegion(to_denoiser(backbone, latent_masks(backbone, dilated)), normal_prompt)

    def _make_pair(
        self, plan: "_SamplePlan", pixels: NDArray[np.floating], soft: NDArray[np.floating]
    ) -> SyntheticPair:
        """Return the pair of one request from its canvas [R, R, 3] and its mask probability [R, R]."""
        config, request, window = self.config, plan.request, plan.window
        resized, soft = resize_to_window(pixels, window), np.clip(resize_to_window(soft, window), 0, 1)
        allowed = np.ones(soft.shape, bool)
        if config.mask_dilation is not None:
            allowed = dilate_in_window(request.mask, window, config.mask_dilation, self.backbone.resolution)
            soft = soft * allowed
        mask, rule = soft > config.mask_threshold, "threshold"
        if not mask.any():
            # Pixels outside the dilated mask rank last and are removed again: the fraction may exceed the region.
            mask = select_strongest(np.where(allowed, soft, -1), EMPTY_MASK_FRACTION) & allowed
            rule = f"strongest {EMPTY_MASK_FRACTION:.1%}"
        full_mask, full_soft = np.zeros(request.mask.shape, bool), np.zeros(request.mask.shape, np.float32)
        full_mask[window.slices], full_soft[window.slices] = mask, soft
        full = request.normal_image.astype(np.float32)
        full[window.slices] = full[window.slices] + resized if config.adds_residual else resized
        image = np.clip(np.rint(full), 0, 255).astype(np.uint8)
        if config.paste:
            image = composite(request.normal_image, full, full_mask, config.feather)
        metadata = {"prompt": self._prompt_text(plan.defects), "mask_rule": rule}
        return SyntheticPair(request.sample_id, image, full_mask, full_soft, metadata)

    def _prompt_text(self, defects: Sequence[str]) -> str:
        """Return the UA prompt as text, with a name in angle brackets for each set of tokens."""
        names = " ".join(f"<{defect}>" for defect in defects)
        return self.config.defect_prompt.format(product=f"<{self.product}>", defect=names)


@dataclasses.dataclass(frozen=True)
class _SamplePlan:
    """A checked request with the defects that it names and its window."""

    request: CheckedRequest
    defects: tuple[str, ...]
    window: Window


GENERATOR = Seas


def _check_encoder_attention(backbone: Backbone) -> None:
    """Check that the U-Net's encoder has cross-attention, which the DA loss reads.

    Raises:
        InputError: it has none.
    """
    control_attention(backbone.denoiser)
    names = [name for name, _ in backbone.denoiser.down_blocks.named_modules()]
    if not any(name.endswith("attn2") for name in names):
        raise InputError(
            "seas: the backbone's U-Net has no cross-attention in its encoder (down_blocks), which the DA loss needs; "
            "expected a backbone such as 'embedded' or Stable Diffusion 1.5"
        )
