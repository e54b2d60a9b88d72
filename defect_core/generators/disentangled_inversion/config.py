"""Settings and capabilities of disentangled DDIM inversion."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from defect_core.generators.canvas_config import CanvasConfig
from defect_core.generators.registry import Capabilities
from defect_core.settings import prompt_template

CAPABILITIES = Capabilities(scope="product", keeps_background=True, predicts_mask=True, needs_mask=True)

# The layers of the refinement, the learning rate and the batch size are not in the paper (see `paper.py`).
_PAPER = {
    "models": "defect",
    "steps": 500,
    "learning_rate": 5e-6,
    "batch_size": 2,
    "schedule": "constant",
    "balance": "area",
    "canvas": "whole",
    "sampling_steps": 50,
    "mode": "paper",
    "paste": False,
    "refinement": "attention",
    "refinement_sides": (16, 32),
}


class DisentangledInversionConfig(CanvasConfig):
    """Settings of disentangled DDIM inversion. The defaults suit the embedded backbone."""

    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": _PAPER}

    models: Literal["product", "defect"] = "product"
    """One U-Net for all defects of a product (not in the paper), or one for each `defect`. Paper: `defect`."""
    steps: int = Field(default=400, ge=1)
    """Optimiser steps of each U-Net. Paper: 500."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Learning rate of AdamW (not in the paper)."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW (not in the paper)."""
    batch_size: int = Field(default=8, ge=1)
    """Images per optimiser step (not in the paper)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` with warm-up (not in the paper), or a `constant` learning rate. DreamBooth: `constant`."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: no clipping. DreamBooth: 1.0."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Number type of the moments of AdamW; `bf16` halves their memory (not in the paper)."""
    balance: Literal["area", "equal", "equal_per_sample"] = "equal"
    """`area` weights the two terms of eq. 5 by their areas. Paper: `area`.

    `equal` weights them equally over the batch, `equal_per_sample` in every image (not in the paper). With `equal`, a
    small defect has little weight beside a large one in the same batch.
    """
    sampling_steps: int = Field(default=25, ge=1)
    """Steps T of the inversion and of the sampling. Paper: 50."""
    mode: Literal["cached", "paper"] = "cached"
    """`paper` predicts the background noise again, `cached` reuses that of the inversion (not in the paper)."""
    start: Literal["noise", "example"] = "noise"
    """`noise`, or `example` for SDEdit (Meng et al. 2022) from a real example (not in the paper). Paper: `noise`."""
    start_level: float = Field(default=0.7, gt=0, le=1)
    """With `start: example`, the fraction of T that sampling takes (not in the paper)."""
    residual: bool = True
    """With `start: example`, adds the change to the example's own pixels (not in the paper)."""
    guidance_scale: float = Field(default=1.0, ge=1)
    """Weight of classifier-free guidance in the defect branch; 1 disables it (not in the paper)."""
    refinement: Literal["attention", "difference", "none"] = "difference"
    """Refinement of the mask: `attention` (eq. 13, paper), `difference` (not in the paper) or `none`."""
    refinement_sides: tuple[int, ...] = ()
    """Sides of the attention layers that `attention` averages; empty: the two finest. Not named in the paper."""
    paste: bool = True
    """Keeps the pixels of the normal image outside the returned mask (not in the paper). Paper: false.

    With false the image is the decoded sample; outside the mask it differs from the normal image by the error of the
    VAE and of the inversion. The capability `keeps_background` holds for true only.
    """
    defect_prompt: Annotated[str, prompt_template("product", "defect")] = "a photo of a {defect} on a {product}"
    """Prompt C_def inside the mask (its text not in the paper)."""
    background_prompt: Annotated[str, prompt_template("product")] = "a photo of a {product}"
    """Prompt C_bg outside the mask (its text not in the paper)."""
    hole_prompt: str = ""
    """Prompt C_m inside the mask of the background branch (its text not in the paper)."""


CONFIG = DisentangledInversionConfig
