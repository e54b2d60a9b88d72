"""Settings and capabilities of AnomalyDiffusion."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", keeps_background=True, predicts_mask=False, needs_mask=True)


class EncoderConfig(GeneratorConfig):
    """Architecture and size of the spatial encoder. The defaults suit the embedded backbone."""

    architecture: Literal["ir", "resnet50"] = "ir"
    """`ir`: residual stages of the next two keys (public code: IR-50). `resnet50`: ResNet-50 (paper)."""
    norm: Literal["group", "batch"] = "group"
    """Normalisation; with `group` a sample does not depend on its batch (not in the paper). Public code: batch."""
    side: int = Field(default=64, ge=32, multiple_of=16)
    """Side in pixels to which a mask is resized. Public code: 256."""
    channels: tuple[int, int, int, int] = (16, 16, 32, 64)
    """Channels of the residual stages of `ir`, each of which halves the side. Public code: 64, 128, 256, 512."""
    depths: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks of each stage of `ir`; the last three stages feed the pyramid. Public code: 3, 4, 14, 3."""
    width: int = Field(default=32, ge=1)
    """Channels of the feature pyramid. Public code: 512."""
    head_width: int | None = Field(default=64, ge=1)
    """Channels of the head of each token; null: the width of the text encoder (public code)."""


class MaskModelConfig(GeneratorConfig):
    """Settings of the mask model: textual inversion on images of masks. `masks: generated` uses it."""

    tokens: int = Field(default=4, ge=1)
    """k', mask tokens per defect type. Paper: 4; its appendix: 2. Public code: 16."""
    steps: int = Field(default=200, ge=1)
    """Optimiser steps for all defect types together, unless `steps_per_defect` is set."""
    steps_per_defect: int | None = Field(default=None, ge=1)
    """Optimiser steps for each defect type, trained one after the other. Paper: 30 000. Public code: 5000."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Learning rate of the mask tokens. Paper: 5e-3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate: warm-up and cosine decay (not in the paper), or constant (paper)."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (not in the paper); null: no clipping (paper)."""
    prompt: str = "a black and white image of a {shape}"
    """Prompt with the slot {shape} for the mask tokens (not in the paper)."""
    sampling_steps: int = Field(default=25, ge=1)
    """Steps of DDIM with eta 1. Public code: 100."""
    guidance_scale: float = Field(default=5.0, ge=1)
    """Weight of classifier-free guidance (Ho and Salimans 2022); 1 disables it. Public code: 5."""
    threshold: float = Field(default=0.8, gt=-1, lt=1)
    """Pixels whose mean over the channels, in [-1, 1], is above this value are defect pixels. Public code: 0.8."""
    border_fraction: float = Field(default=1 / 3, gt=0, le=1)
    """A mask that sets more than this fraction of a border row or column is rejected. Public code: 1/3."""
    position: Literal["requested", "sampled"] = "requested"
    """`requested`: the sampled mask is moved to the requested one (not in the paper). `sampled`: it stays where it was
    sampled (paper)."""

    @field_validator("prompt")
    @classmethod
    def _has_one_slot(cls, prompt: str) -> str:
        if prompt.count("{shape}") != 1:
            raise ValueError(f"expected the slot {{shape}} exactly once, not {prompt!r}")
        return prompt


_GEOMETRY_ONLY = {"rotate90": False, "scale": 0.0, "brightness": 0.0, "contrast": 0.0, "colour": 0.0, "keep": 0.95}
_BOTH = {
    "scope": "catalogue",
    "canvas": "whole",
    "variants": None,
    "batch_size": 4,
    "steps": 300_000,
    "schedule": "constant",
    "max_grad_norm": None,
    "tune_denoiser": False,
    "sampling_steps": 200,
    "paste": False,
    "masks": "generated",
}
_MASK_MODEL = {"schedule": "constant", "max_grad_norm": None, "sampling_steps": 100, "position": "sampled"}
_VARIANTS = {
    "paper": {
        **_BOTH,
        "encoder": {"architecture": "resnet50", "norm": "batch", "side": 256, "width": 256, "head_width": None},
        "init_word": None,
        "augmentation": {**_GEOMETRY_ONLY, "flips": False, "rotation": 20.0, "shift": 0.1, "crop": True},
        "learning_rate": 5e-3,
        "encoder_learning_rate": 5e-3,
        "reduction": "sum",
        "mask_model": {**_MASK_MODEL, "steps_per_defect": 30_000},
    },
    "official": {
        **_BOTH,
        "anomaly_tokens": 4,
        "encoder": {
            "norm": "batch",
            "side": 256,
            "channels": (64, 128, 256, 512),
            "depths": (3, 4, 14, 3),
            "width": 512,
            "head_width": None,
        },
        "augmentation": {**_GEOMETRY_ONLY, "rotation": 20.0, "shift": 0.0, "crop": True, "probability": 0.5},
        "learning_rate": 2e-2,
        "encoder_learning_rate": 2e-2,
        "mask_policy": "bilinear_half",
        "reduction": "global_mean",
        "reweighting": "official",
        "blend_result": False,
        "mask_model": {**_MASK_MODEL, "tokens": 16, "steps_per_defect": 5000},
    },
}


class AnomalyDiffusionConfig(CanvasConfig):
    """Settings of AnomalyDiffusion. The defaults suit the embedded backbone."""

    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = _VARIANTS
    HAS_NEW_VIEWS: ClassVar[bool] = True

    scope: Literal["product", "catalogue"] = "product"
    """`catalogue`: one spatial encoder for all products of the project (paper). `product`: one for each product."""
    anomaly_tokens: int = Field(default=8, ge=1)
    """k, tokens per defect type for its appearance. Paper: 8. Public code: 4."""
    spatial_tokens: int = Field(default=4, ge=1)
    """n, tokens that the spatial encoder computes from a mask. Paper: 4."""
    encoder: EncoderConfig = EncoderConfig()
    """Size of the spatial encoder."""
    init_word: str | None = "anomaly"
    """Word whose embedding initialises every anomaly token, as in the public code; null: random (paper)."""
    prompts: tuple[str, ...] = Field(
        ("a photo of a {anomaly}", "a close photo of a {anomaly}", "a picture of the {anomaly}", "one {anomaly}"),
        min_length=1,
    )
    """Prompts with the slot {anomaly}; training picks one per image, sampling uses the first. Public code: about 80."""
    steps: int = Field(default=300, ge=1)
    """Optimiser steps for all defect types. Paper: 300 000 for 73 defect types."""
    learning_rate: float = Field(default=2e-2, gt=0)
    """Peak learning rate of the anomaly tokens. Paper: 5e-3. Public code: 2e-2 in effect."""
    encoder_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the spatial encoder. Paper: 5e-3."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate: warm-up and cosine decay (not in the paper), or constant (paper)."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (not in the paper); null: no clipping (paper)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW. Paper: 0."""
    batch_size: int = Field(default=8, ge=1)
    """Examples per optimiser step. Paper: 4."""
    mask_policy: Literal["max", "bilinear_half"] = "max"
    """How masks are resized for the loss: `max` keeps every defect (not in the paper), `bilinear_half` is the public
    code's and loses small defects."""
    reduction: Literal["masked_mean", "global_mean", "sum"] = "masked_mean"
    """Divisor of the loss: the mask's area (not in the paper), the whole latent (public code), or none (paper)."""
    tune_denoiser: bool = True
    """Train the U-Net too (not in the paper); the embedded U-Net needs it."""
    denoiser_learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of the U-Net, with `tune_denoiser` (not in the paper)."""
    sampling_steps: int = Field(default=50, ge=1)
    """T, steps of DDIM. Public code: 200."""
    eta: float = Field(default=1.0, ge=0, le=1)
    """Stochasticity of DDIM; 0 is deterministic. Public code: 1."""
    guidance_scale: float = Field(default=1.0, ge=1)
    """Weight of classifier-free guidance (Ho and Salimans 2022); 1 disables it. Public code: 1."""
    reweighting: Literal["off", "paper", "official"] = "paper"
    """Adaptive attention re-weighting: `paper` compares decoded images, `official` compares latents as the public code
    can, `off` disables it. Public code's default: off."""
    min_difference: float = Field(default=0.5, gt=0)
    """Smallest squared difference that `reweighting: paper` divides by, as a fraction of the mean over the mask (not in
    the paper)."""
    blend_result: bool = True
    """Blend the last latent with the clean normal latent outside the mask (paper, eq. 1). Public code: false."""
    paste: bool = True
    """Paste the defect into the normal image, so that no pixel changes outside the mask (not in the paper); `false`
    returns the decoded image."""
    masks: Literal["given", "generated"] = "given"
    """`given` uses the requested mask; `generated` samples a new mask in its place from the mask model. Paper:
    generated."""
    mask_model: MaskModelConfig = MaskModelConfig()
    """Settings of the mask model."""

    def capabilities(self, declared: Capabilities) -> Capabilities:
        """Return the declared capabilities with the scope and the pasting of these settings."""
        return replace(super().capabilities(declared), scope=self.scope)

    @field_validator("prompts")
    @classmethod
    def _each_has_one_slot(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if prompt.count("{anomaly}") != 1:
                raise ValueError(f"expected the slot {{anomaly}} exactly once in each prompt, not {prompt!r}")
        return prompts


CONFIG = AnomalyDiffusionConfig
