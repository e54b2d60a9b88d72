"""Settings and capabilities of SeaS (Dai et al. 2025)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities
from defect_core.settings import prompt_template

CAPABILITIES = Capabilities(scope="product", predicts_mask=True, needs_mask=True, generates_normals=True)
WIDTH_MULTIPLE = 24  # two thirds and one third of the width must be integers, and 8 must divide it (heads, norm groups)


class SeasConfig(CanvasConfig):
    """Settings of SeaS. The defaults suit the embedded backbone on a CPU.

    "Paper" is the paper's value for Stable Diffusion 1.4. "Public code" is the value of the authors' code, and
    `official` selects what that code does where it differs from the paper.
    """

    steps: int = Field(default=700, ge=1)
    """Optimiser steps of separation and sharing fine-tuning. Paper: 800 per defect of the product."""
    learning_rate: float = Field(default=4e-4, gt=0)
    """Learning rate of the U-Net. Paper: 4e-6."""
    token_learning_rate: float = Field(default=2e-3, gt=0)
    """Learning rate of the token embeddings, without weight decay. Paper: 4e-5."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW in both training stages. Public code: 1e-2."""
    batch_size: int = Field(default=4, ge=1)
    """Number of defect images per step; as many normal images are added. Paper: 2."""
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
    """Form of the DA loss: `paper` is eq. 3, `official` is that of the public code."""
    alignment_weight: float = Field(default=2.0, ge=0)
    """Weight of the DA loss. Paper: 1."""
    normals: int = Field(default=60, ge=1)
    """Largest number of normal images used for training. Paper: 60."""
    augmentation: Literal["rotate_flip", "full", "none"] = "rotate_flip"
    """Quarter turns and flips (public code), `none`, or the `full` augmentation of this project (not in the paper)."""
    mask_steps: int = Field(default=150, ge=1)
    """Optimiser steps of the RMP branch. Paper: 800 per defect of the product."""
    mask_learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the RMP branch. Paper: 5e-4."""
    mask_width: int = Field(default=24, ge=WIDTH_MULTIPLE)
    """Number of channels in the RMP branch, a multiple of 24. Paper: 192."""
    mask_layers: int = Field(default=4, ge=0)
    """Number of transformer layers in the RMP branch. Paper: 4."""
    mask_timestep_fraction: float = Field(default=0.2, gt=0, le=1)
    """Fraction of the timesteps, from 0 upward, that the RMP branch trains on. Paper: 1."""
    refinement: Literal["paper", "official"] = "paper"
    """`paper` ends each mask refinement module with a 3 × 3 convolution; `official` does not."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Gamma of the focal loss (Lin et al. 2017). Public code: 2."""
    sampling_steps: int = Field(default=25, ge=2)
    """Steps of DPM-Solver++ (Lu et al. 2022). Paper: 25."""
    guidance_scale: float = Field(default=7.0, ge=0)
    """Weight of classifier-free guidance (Ho and Salimans 2022); 1 disables it. Public code: 8, 2 or 5 by data set."""
    normal_guidance_scale: float = Field(default=2.0, ge=0)
    """Weight of classifier-free guidance for normal images. Public code: as `guidance_scale`."""
    reference: Literal["paper", "official"] = "paper"
    """`paper`: noises the scaled latents of the normal image. `official`: unscaled latents, 1500 noising steps."""
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
        if self.reference == "official" and self.ref_strength > 0:
            raise ValueError("reference: official starts at the last timestep; expected ref_strength: 0")
        return self

    @property
    def adds_residual(self) -> bool:
        """Whether sampling adds the difference of two trajectories to the normal image (see `residual`)."""
        return self.residual and self.paste and self.mask_dilation is not None


CONFIG = SeasConfig
