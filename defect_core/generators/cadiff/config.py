"""Settings and capabilities of CADiff (Tong et al. 2026)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities
from defect_core.settings import prompt_template

CAPABILITIES = Capabilities(scope="product", keeps_background=True, needs_mask=True, has_strength=True)

SLOTS = ("{context}", "{anomaly}")
MAX_STRENGTH = 2.0  # the paper's range of the intensity w is [-2, 2]


class CADiffConfig(CanvasConfig):
    """Settings of CADiff. The defaults suit the embedded backbone on a CPU.

    "Paper" is the value of the paper for Stable Diffusion 1.5. There is no public code.
    """

    steps: int = Field(default=300, ge=1)
    """Optimiser steps for all defects of the product together. Paper: 1000 epochs."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate of the control branch, with warm-up and cosine decay. Paper: 1e-5, constant."""
    token_learning_rate: float = Field(default=1e-2, gt=0)
    """Learning rate of the tokens. Paper: 1e-5."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW, except on the tokens (not in the paper)."""
    batch_size: int = Field(default=8, ge=1)
    """Images per step. Paper: 16."""
    normal_fraction: float = Field(default=0.25, ge=0, lt=1)
    """Fraction of a batch that is normal images, conditioned on a defect at intensity 0 (not in the paper)."""
    init_word: str = Field(default="anomaly", min_length=1)
    """Word whose embedding initialises all tokens. Paper: anomaly."""
    templates: tuple[Annotated[str, prompt_template("context", "anomaly")], ...] = Field(
        (
            "a photo of a {context} with {anomaly}",
            "a picture of a {context} with {anomaly}",
            "a close photo of a {context} with a {anomaly}",
            "a {context} that has {anomaly}",
            "an image of {anomaly} on a {context}",
            "the {context} shows {anomaly}",
        ),
        min_length=1,
    )
    """Prompts with {context} and {anomaly}; sampling uses the first (not in the paper)."""
    balance: Literal["image", "equal"] = "equal"
    """`image`: mean over the image (paper). `equal`: mask and background weigh the same (not in the paper)."""
    localising_weight: float = Field(default=1.0, ge=0)
    """Weight γ of the localizing masked loss. Paper: 1e-3."""
    localising: Literal["balanced", "token", "paper"] = "balanced"
    """Form of the localizing masked loss: `paper` is eq. 5; for `token` and `balanced` see `localizing_masked_loss`."""
    loss_sides: tuple[int, ...] = ()
    """Sides of the attention layers in the localizing masked loss; empty: all. Paper: all."""
    contrast_weight: float = Field(default=5e-4, ge=0)
    """Weight β of the contrastive disentanglement loss. Paper: 5e-4."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature τ of the contrastive disentanglement loss (not in the paper)."""
    contrast_views: int = Field(default=4, ge=2)
    """Prompts per token in the contrastive disentanglement loss. Paper: the images of the batch."""
    self_adaptive_interaction: Literal["attention", "addition", "both"] = "both"
    """`attention`: self-adaptive interaction module (paper). `addition`: as in ControlNet. `both`: their sum."""
    control_scale: float = Field(default=1.0, ge=0, le=1)
    """Weight of the control branch from 0 to 1; 0 disables it (not in the paper)."""
    tune_denoiser: bool = True
    """Also train the U-Net, at `learning_rate`. The paper states both that it is frozen and trained."""
    sampling_steps: int = Field(default=25, ge=1)
    """Steps of DDIM (Song et al. 2021). Paper: 50."""
    guidance_scale: float = Field(default=1.0, ge=1)
    """Weight of classifier-free guidance (Ho and Salimans 2022); 1 disables it (not in the paper)."""
    start: Literal["normal", "noise"] = "normal"
    """`noise` starts from pure noise (paper); `normal` from the noised normal image (not in the paper)."""
    start_level: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the sampling steps to run with `start: normal` (not in the paper)."""
    paste: bool = True
    """Keep the normal image outside the mask, in the latents of every step and in the final pixels (not in the paper).
    """
    strength_range: tuple[float, float] = (0.5, 1.5)
    """Range of the intensity w of a request without a strength, uniform. Paper: 0.5 to 1.5."""
    focus_threshold: float = Field(default=0.75, ge=0, le=1)
    """Threshold α_thr of the delayed focus scheduler. Paper: 0.75."""
    focus_latched: bool = True
    """Re-weighting stays on once it has started (not in the paper); false decides at every step."""
    focus_side: int = Field(default=16, ge=1)
    """Α is measured on the attention layers whose side is nearest to this. Paper: 16."""
    masked_focus: bool = True
    """Re-weight only inside the mask (masked focus attention). Paper: true."""

    @field_validator("templates")
    @classmethod
    def _check_slots(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if any(template.count(slot) != 1 for slot in SLOTS):
                raise ValueError(f"expected {{context}} and {{anomaly}} once in each template, not {template!r}")
        return templates

    @field_validator("strength_range")
    @classmethod
    def _check_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not -MAX_STRENGTH <= limits[0] <= limits[1] <= MAX_STRENGTH:
            raise ValueError("expected two numbers from -2 to 2, the smaller first")
        return limits


CONFIG = CADiffConfig
