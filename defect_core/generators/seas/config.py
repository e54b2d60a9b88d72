"""Settings and capabilities of SeaS (Dai et al. 2025)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from defect_core.generators.canvas_config import AugmentationConfig, CanvasConfig
from defect_core.generators.registry import Capabilities
from defect_core.settings import prompt_template

CAPABILITIES = Capabilities(scope="product", predicts_mask=True, needs_mask=True, generates_normals=True)
WIDTH_MULTIPLE = 24  # two thirds and one third of the width must be integers, and 8 must divide it (heads, norm groups)


class RotateFlip(AugmentationConfig):
    """Augmentation of SeaS' public code: quarter turns and flips. See `AugmentationConfig`."""

    rotate90: bool | None = True
    rotation: float | None = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0


_BOTH = {
    "steps_per_defect": 800,
    "schedule": "constant",
    "max_grad_norm": None,
    "learning_rate": 4e-6,
    "token_learning_rate": 4e-5,
    "noise_weighting": "noise",
    "balance": "image",
    "alignment_weight": 1.0,
    "canvas": "whole",
    "variants": None,
    "mask_learning_rate": 5e-4,
    "mask_width": 192,
    "mask_timestep_fraction": 1.0,
    "mask_norm": "batch",
    "ref_strength": 0.0,
    "guidance_scale": 8.0,
    "normal_guidance_scale": 8.0,
    "mask_dilation": None,
    "residual": False,
    "paste": False,
}
_VARIANTS = {
    "paper": {**_BOTH, "batch_size": 2, "alignment": "paper", "reference": "paper"},
    "official": {**_BOTH, "moments": "bf16", "refinement": "official", "reference": "official"},
}


class SeasConfig(CanvasConfig):
    """Settings of SeaS. The defaults suit the embedded backbone on a CPU.

    "Paper" is the paper's value for Stable Diffusion 1.4. "Public code" is the value of the authors' code, and
    `official` selects what that code does where it differs from the paper.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = _VARIANTS
    HAS_NEW_VIEWS: ClassVar[bool] = True

    steps: int = Field(default=700, ge=1)
    """Optimiser steps of separation and sharing fine-tuning, unless `steps_per_defect` is set."""
    steps_per_defect: int | None = Field(default=None, ge=1)
    """Optimiser steps of both training stages for each defect type of the product; replaces `steps` and `mask_steps`.
    Paper: 800."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate in both stages: warm-up and cosine decay (not in the paper), or constant (public code)."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (not in the paper); null: no clipping (public code)."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Number type of AdamW's moments. Public code: 8 bits, which has about the memory of bf16 plus its scales."""
    learning_rate: float = Field(default=4e-4, gt=0)
    """Learning rate of the U-Net. Paper: 4e-6."""
    token_learning_rate: float = Field(default=2e-3, gt=0)
    """Learning rate of the token embeddings, without weight decay. Paper: 4e-5."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW in both training stages. Public code: 1e-2."""
    batch_size: int = Field(default=4, ge=1)
    """Number of defect images per step; as many normal images are added. Paper: 2. Public code: 4, as two accumulated
    parts of 2 (`compute.accumulate: 2`)."""
    anomaly_tokens: int = Field(default=4, ge=1)
    """Number N of anomaly tokens per defect. Paper: 4."""
    normal_init_word: str = "object"
    """Word whose embedding initialises the normal token. Public code: object."""
    anomaly_init_word: str = "defect"
    """Word whose embedding initialises the anomaly tokens. Public code: defect."""
    noise_weighting: Literal["noise", "velocity"] = "velocity"
    """`noise`: all timesteps weigh the same (paper). `velocity`: divides the squared error by alpha_cumprod."""
    balance: Literal["image", "equal"] = "equal"
    """`image`: mean over a defect image (paper). `equal`: mask and background weigh the same (not in the paper)."""
    alignment: Literal["paper", "official"] = "official"
    """Form of the DA loss: `paper` is eq. 3, `official` that of the public code. Eq. 3 with its softmax over tokens is
    too weak beside the noise loss to move the attention; the tables need `official`."""
    alignment_weight: float = Field(default=2.0, ge=0)
    """Weight of the DA loss. Paper: 1."""
    normals: int = Field(default=60, ge=1)
    """Largest number of normal images used for training. Paper: 60."""
    augmentation: AugmentationConfig = RotateFlip()
    """Random changes of the training views. The default is quarter turns and flips, as in the public code."""
    mask_steps: int = Field(default=150, ge=1)
    """Optimiser steps of the RMP branch, unless `steps_per_defect` is set."""
    mask_learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the RMP branch. Paper: 5e-4."""
    mask_width: int = Field(default=24, ge=WIDTH_MULTIPLE)
    """Number of channels in the RMP branch, a multiple of 24. Paper: 192."""
    mask_layers: int = Field(default=4, ge=0)
    """Number of transformer layers in the RMP branch. Paper: 4."""
    mask_timestep_fraction: float = Field(default=0.2, gt=0, le=1)
    """Fraction of the timesteps, from 0 upward, that the RMP branch trains on. Paper: 1."""
    refinement: Literal["paper", "official"] = "paper"
    """`paper` ends each mask refinement module with a 3 × 3 convolution; `official` does not, and normalises the image
    feature and applies ReLU to it before the multiplication."""
    mask_norm: Literal["group", "batch"] = "group"
    """Normalisation in the RMP branch; with `group` a mask does not depend on its batch. Public code: batch."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Gamma of the focal loss (Lin et al. 2017). Public code: 2."""
    sampling_steps: int = Field(default=25, ge=2)
    """Steps of DPM-Solver++ (Lu et al. 2022). Paper: 25."""
    guidance_scale: float = Field(default=7.0, ge=0)
    """Weight of classifier-free guidance (Ho and Salimans 2022); 1 disables it. Public code: 8, 2 or 5 by data set."""
    normal_guidance_scale: float = Field(default=2.0, ge=0)
    """Weight of classifier-free guidance for normal images. Public code: as `guidance_scale`."""
    reference: Literal["schedule", "paper", "official"] = "schedule"
    """How the latents of the normal image are noised: `schedule` to the first timestep of the sampling (not in the
    paper), `paper` to t = 1500 of a schedule extended to 1500 steps (appendix A.3), `official` likewise, but without
    the scaling factor of the VAE."""
    ref_strength: float = Field(default=0.35, ge=0, lt=1)
    """Fraction of the sampling steps that is skipped; more of the normal image remains (not in the paper)."""
    mask_threshold: float = Field(default=0.2, gt=0, lt=1)
    """Threshold tau of the mask probability. Paper: 0.2."""
    mask_average: int = Field(default=3, ge=1)
    """Number of last sampling steps whose masks are averaged. Paper: 3."""
    mask_dilation: float | None = Field(default=2.0, ge=0)
    """Anomaly tokens and mask stay within this many canvas pixels of the request; null: anywhere (paper)."""
    residual: bool = True
    """Add the difference of sampling with and without anomaly tokens to the normal image (not in the paper)."""
    paste: bool = True
    """Keep the normal image outside the predicted mask (not in the paper)."""
    defect_prompt: Annotated[str, prompt_template("product", "defect")] = "a {product} with {defect}"
    """UA prompt of a defect image; {product} and {defect} are replaced by learned tokens."""
    normal_prompt: Annotated[str, prompt_template("product")] = "a {product}"
    """Prompt of a normal image; {product} is replaced by the normal token."""

    @field_validator("mask_width")
    @classmethod
    def _check_width(cls, value: int) -> int:
        if value % WIDTH_MULTIPLE:
            raise ValueError(f"expected a multiple of {WIDTH_MULTIPLE}")
        return value

    @model_validator(mode="after")
    def _check_reference(self) -> "SeasConfig":
        if self.reference != "schedule" and self.ref_strength > 0:
            raise ValueError(f"reference: {self.reference} starts at the last timestep; expected ref_strength: 0")
        return self

    def steps_of(self, defects: int) -> tuple[int, int]:
        """Return the optimiser steps of the U-Net and of the RMP branch for a product with this many defect types."""
        if self.steps_per_defect is None:
            return self.steps, self.mask_steps
        return self.steps_per_defect * defects, self.steps_per_defect * defects

    @property
    def adds_residual(self) -> bool:
        """Whether sampling adds the difference of two trajectories to the normal image (see `residual`)."""
        return self.residual and self.paste and self.mask_dilation is not None


CONFIG = SeasConfig
