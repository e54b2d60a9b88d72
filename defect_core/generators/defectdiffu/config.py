"""Settings and capabilities of DefectDiffu."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities

CAPABILITIES = Capabilities(
    scope="catalogue", keeps_background=True, predicts_mask=True, has_strength=True, zero_shot=True, uses_backbone=True
)

_COMMON = {
    "text_vector": "projected",
    "split": (10, 10, 8),
    "epochs": 1501,
    "learning_rate": 1e-5,
    "added_learning_rate": 1e-5,
    "schedule": "constant",
    "max_grad_norm": None,
    "batch_size": 2,
    "region_fraction": 0.0,
    "mask_weight": 0.2,
    "weight_cap": 1.0,
    "canvas": "whole",
    "residual": False,
    "sampling_steps": 50,
    "start": "noise",
    "strength_range": (0.5, 2.5),
    "mask_dilation": None,
    "paste": False,
}
# Where the paper has no value, `paper` has that of the public code (see `paper.py`).
_PAPER = {**_COMMON, "dit": "facebook/DiT-XL-2-512", "text": "openai/clip-vit-large-patch14"}
_OFFICIAL = {
    **_COMMON,
    "dit": "facebook/DiT-XL-2-256",
    "text": "timm/resnet50_clip.openai",
    "drop_product": 0.0,
    "alpha": 1e-4,
    "detach_ratio": False,
    "guidance": "two_branch",
}


class DefectDiffuConfig(CanvasConfig):
    """Settings of DefectDiffu. The defaults suit the embedded transformer.

    The capability `keeps_background` holds for the default `paste: true`.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": _PAPER, "official": _OFFICIAL}

    dit: str = "embedded"
    """`embedded` (ships with the package), a folder as diffusers writes it, or a hub name. Paper: DiT-XL/2."""
    text: str = "hashed"
    """`hashed` (no weights, not in the paper), or a folder or hub name of CLIP. Paper: CLIP. Public code: CLIP RN50."""
    text_vector: Literal["pooled", "projected"] = "pooled"
    """CLIP's sentence vector: `projected` into the space of the images, or `pooled` before that. Paper: `projected`."""
    split: tuple[int, int, int] | None = None
    """Blocks of the background, defect and fusion part; null keeps the paper's proportions. Paper: 10, 10, 8."""
    steps: int = Field(default=700, ge=1)
    """Optimiser steps over the whole catalogue; `epochs` replaces them."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over all training images; null: `steps`. Public code: 1501."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` with warm-up (not in the paper), or a `constant` learning rate. Public code: `constant`."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: no clipping. Public code: null."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Number type of the moments of AdamW; `bf16` halves their memory (not in the paper)."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Learning rate of AdamW for the blocks of the DiT. Public code: 1e-5."""
    added_learning_rate: float = Field(default=2e-3, gt=0)
    """Learning rate of AdamW for text layer, cross-attention and mask generation module. Public code: 1e-5."""
    weight_decay: float = Field(default=1e-8, ge=0)
    """Weight decay of AdamW. Public code: 1e-8."""
    batch_size: int = Field(default=16, ge=1)
    """Images per optimiser step. Public code: 2."""
    normal_variants: int = Field(default=6, ge=1)
    """Augmented views per normal image, encoded before training (not in the paper)."""
    defect_fraction: float = Field(default=0.6, gt=0, le=1)
    """Fraction of each batch that shows defects (not in the paper)."""
    region_fraction: float = Field(default=0.7, ge=0, le=1)
    """Fraction of defect views trained with their region; 0 disables regions (not in the paper)."""
    drop_product: float = Field(default=0.2, ge=0, le=1)
    """Probability that the product becomes null, p_1 of algorithm 1. Paper: 0.2."""
    drop_defect: float = Field(default=0.2, ge=0, le=1)
    """Probability that the defect becomes "good", p_2 of algorithm 1. Paper: 0.2."""
    mask_weight: float = Field(default=1.0, ge=0)
    """Weight of the mask prediction loss, lambda of eq. 11. Paper: 0.2."""
    variance_weight: float = Field(default=1.0, ge=0)
    """Weight of the variational bound that trains the variance (not in the paper). Public code: 1."""
    alpha: float = Field(default=1e-3, gt=0)
    """Constant in the denominator of eq. 8. Paper: 1e-3. Public code: 1e-4."""
    weight_cap: float = Field(default=5.0, ge=1)
    """Noise losses are weighted by min(1 / alpha_bar, weight_cap); 1 disables it (not in the paper)."""
    detach_ratio: bool = True
    """Stops the gradient through R of eq. 9 (not in the paper). Public code: false."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass, which saves memory and costs time."""
    residual: bool = True
    """Adds the difference between the samples at strength w_d and 0 (not in the paper).

    It needs `paste: true` and `start: normal`.
    """
    sampling_steps: int = Field(default=25, ge=1)
    """Steps of the ancestral sampler. Public code: 50."""
    guidance: Literal["three_branch", "two_branch"] = "three_branch"
    """`three_branch` (eq. 4), or `two_branch` as in the public code. Paper: `three_branch`."""
    product_scale: float = Field(default=1.0, ge=0)
    """Weight of the product direction, w_p of eq. 4."""
    strength_range: tuple[float, float] = (1.5, 3.5)
    """Range of the strength w_d of eq. 4 for requests without one; the seed chooses. Public code: 0.5 to 2.5."""
    start: Literal["normal", "noise"] = "normal"
    """`normal` starts from the noised normal image (not in the paper), `noise` from pure noise. Paper: `noise`."""
    start_level: float = Field(default=0.6, gt=0, le=1)
    """With `start: normal`, the fraction of the steps that sampling takes (not in the paper)."""
    mask_average_fraction: float = Field(default=0.1, gt=0, le=1)
    """Fraction of the steps, the last ones, over which the mask is averaged. Paper: 0.1."""
    mask_contrast: float = Field(default=0.1, ge=0, le=1)
    """A sample whose mask has two classes that differ by less (of 1) is rejected; 0 accepts all (not in the paper)."""
    mask_dilation: float | None = Field(default=2.0, ge=0)
    """Limits the mask to the requested mask dilated by this many canvas pixels; null: no limit (not in the paper)."""
    paste: bool = True
    """Copies only the pixels inside the mask into the normal image (not in the paper)."""


CONFIG = DefectDiffuConfig
