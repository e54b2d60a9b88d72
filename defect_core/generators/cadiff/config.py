"""Settings and capabilities of CADiff (Tong et al. 2026)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities
from defect_core.settings import prompt_template

CAPABILITIES = Capabilities(scope="product", keeps_background=True, needs_mask=True, has_strength=True)

SLOTS = ("{context}", "{anomaly}")
MAX_STRENGTH = 2.0  # the paper's range of the intensity w is [-2, 2]

# The guidance scale, the temperature and the prompts are not in the paper (see `paper.py`).
_PAPER = {
    "epochs": 1000,
    "learning_rate": 1e-5,
    "token_learning_rate": 1e-5,
    "schedule": "constant",
    "max_grad_norm": None,
    "batch_size": 16,
    "normal_fraction": 0.0,
    "balance": "image",
    "localising": "paper",
    "localising_weight": 1e-3,
    "contrast_views": 16,
    "self_adaptive_interaction": "attention",
    "tune_denoiser": False,
    "canvas": "whole",
    "sampling_steps": 50,
    "guidance_scale": 7.5,
    "start": "noise",
    "paste": False,
    "focus_latched": False,
}


class CADiffConfig(CanvasConfig):
    """Settings of CADiff. The defaults suit the embedded backbone on a CPU.

    "Paper" is the value of the paper for Stable Diffusion 1.5. There is no public code.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": _PAPER}

    steps: int = Field(default=300, ge=1)
    """Optimiser steps for all defects of the product together; `epochs` replaces them."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the defect images; null: `steps`. Paper: 1000."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` with warm-up (not in the paper), or a `constant` learning rate. Paper: `constant`."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: no clipping, as in ControlNet. Paper: null."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Number type of the moments of AdamW; `bf16` halves their memory (not in the paper)."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate of the control branch. Paper: 1e-5."""
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
    """`image`: mean over the image. Paper: `image`.

    `equal`: mask and background of every image weigh the same, so small and large defects do, too (not in the paper).
    """
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
    strength_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """The same for single defect types, such as `{scratch: [1.0, 1.5]}` (not in the paper)."""
    intensity: Literal["attention", "guidance"] = "attention"
    """`attention` scales the attention to the anomaly token by w (eq. 11). Paper: `attention`.

    `guidance` scales the change of the predicted noise that this attention makes inside the mask (not in the paper).
    It needs one more call of the networks per step and defect.
    """
    combine: dict[str, str] = Field(default_factory=dict)
    """Defect type -> a second one that its samples show in a part of the mask, such as `{dent: scratch}`. The sample
    is still labelled with the first."""
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

    @field_validator("strength_ranges")
    @classmethod
    def _check_ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {defect: cls._check_range(limits) for defect, limits in ranges.items()}

    @field_validator("combine")
    @classmethod
    def _check_combinations(cls, pairs: dict[str, str]) -> dict[str, str]:
        for first, second in pairs.items():
            if first == second:
                raise ValueError(f"expected two different defect types, not {first!r} twice")
        return pairs

    @field_validator("strength_range")
    @classmethod
    def _check_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not -MAX_STRENGTH <= limits[0] <= limits[1] <= MAX_STRENGTH:
            raise ValueError("expected two numbers from -2 to 2, the smaller first")
        return limits


CONFIG = CADiffConfig
