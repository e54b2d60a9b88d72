"""Settings and capabilities of AnomalyDiffusion."""

from typing import Literal

from pydantic import Field, field_validator

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", keeps_background=True, predicts_mask=False, needs_mask=True)


class EncoderConfig(GeneratorConfig):
    """Size of the spatial encoder. The defaults suit the embedded backbone."""

    side: int = Field(default=64, ge=32, multiple_of=16)
    """Side in pixels to which a mask is resized. Public code: 256."""
    channels: tuple[int, int, int, int] = (16, 16, 32, 64)
    """Channels of the residual stages, each of which halves the side. Public code: 64, 128, 256, 512."""
    depths: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks of each stage; the last three stages feed the pyramid. Public code: 3, 4, 14, 3."""
    width: int = Field(default=32, ge=1)
    """Channels of the feature pyramid. Public code: 512."""
    head_width: int = Field(default=64, ge=1)
    """Channels of the head of each token. Public code: the width of the text encoder."""


class MaskModelConfig(GeneratorConfig):
    """Settings of the mask model: textual inversion on images of masks. `masks: generated` uses it."""

    tokens: int = Field(default=4, ge=1)
    """k', mask tokens per defect type. Paper: 4; its appendix: 2. Public code: 16."""
    steps: int = Field(default=200, ge=1)
    """Optimiser steps for all defect types. Paper: 30 000 for each. Public code: 5000 for each."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Learning rate of the mask tokens. Paper: 5e-3."""
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

    @field_validator("prompt")
    @classmethod
    def _has_one_slot(cls, prompt: str) -> str:
        if prompt.count("{shape}") != 1:
            raise ValueError(f"expected the slot {{shape}} exactly once, not {prompt!r}")
        return prompt


class AnomalyDiffusionConfig(CanvasConfig):
    """Settings of AnomalyDiffusion. The defaults suit the embedded backbone."""

    anomaly_tokens: int = Field(default=8, ge=1)
    """k, tokens per defect type for its appearance. Paper: 8. Public code: 4."""
    spatial_tokens: int = Field(default=4, ge=1)
    """n, tokens that the spatial encoder computes from a mask. Paper: 4."""
    encoder: EncoderConfig = EncoderConfig()
    """Size of the spatial encoder."""
    init_word: str = "anomaly"
    """Word whose embedding initialises every anomaly token, as in the public code. Paper: random."""
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
    """Smallest squared difference per pixel that `reweighting: paper` divides by, in [-1, 1] units summed over the
    channels (not in the paper)."""
    masks: Literal["given", "generated"] = "given"
    """`given` uses the requested mask; `generated` samples a new mask in its place from the mask model. Paper:
    generated."""
    mask_model: MaskModelConfig = MaskModelConfig()
    """Settings of the mask model."""

    @field_validator("prompts")
    @classmethod
    def _each_has_one_slot(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if prompt.count("{anomaly}") != 1:
                raise ValueError(f"expected the slot {{anomaly}} exactly once in each prompt, not {prompt!r}")
        return prompts


CONFIG = AnomalyDiffusionConfig
