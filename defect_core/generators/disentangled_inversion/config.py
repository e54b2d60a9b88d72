"""Settings and capabilities of disentangled DDIM inversion."""

from typing import Literal

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", keeps_background=True, predicts_mask=True, needs_mask=True)


class Config(GeneratorConfig):
    """Settings; where the paper says nothing, the choice is ours and marked *.

    Attributes:
        steps: optimiser steps over all defects of the product (paper: 500 per product and defect).
        learning_rate, weight_decay, batch_size: of AdamW*.
        balance: `area` weighs the loss' two halves by their areas (paper eq. 5), `equal` gives each half the same
            weight however small the defect*.
        canvas: `local` draws in a window around the mask*, `whole` on the whole image (paper).
        context: side of a local window over that of the defect's bounding box*.
        min_side: least side of a local window, in pixels*.
        variants: augmented views of each real defect that are encoded before training*.
        sampling_steps: T, of the inversion and of the sampling alike (paper: 50).
        mode: `paper` runs the background branch twice; `cached` reuses the inversion's predictions, which makes the
            background latent exact and saves a third of the calls*.
        start: `noise` grows the defect from pure noise (paper); `example` from the real example, moved to the place
            and noised to `start_level` of the T levels: nearer to the few real ones, and as much less varied*.
        residual: with `start: example`, add what the walk changed in the example to the example's own pixels and do not
            take the decoded walk itself: what the autoencoder cannot hold of a real defect stays*.
        guidance_scale: classifier-free guidance of the defect branch; 1 is off*.
        refinement: how the returned mask is found: `attention` (paper §3.4), `difference` between the drawn and the
            reconstructed canvas*, or `none` (the requested mask).
        feather: width in pixels of the composite's soft edge, inside the mask*.
        defect_prompt, background_prompt, hole_prompt: C_def, C_bg, C_m*.
    """

    steps: int = Field(400, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    batch_size: int = Field(8, ge=1)
    balance: Literal["area", "equal"] = "equal"
    canvas: Literal["local", "whole"] = "local"
    context: float = Field(2.5, ge=1)
    min_side: int = Field(48, ge=8)
    variants: int = Field(24, ge=1)
    sampling_steps: int = Field(25, ge=1)
    mode: Literal["cached", "paper"] = "cached"
    start: Literal["noise", "example"] = "noise"
    start_level: float = Field(0.7, gt=0, le=1)
    residual: bool = True
    guidance_scale: float = Field(1.0, ge=1)
    refinement: Literal["attention", "difference", "none"] = "difference"
    feather: float = Field(1.0, ge=0)
    defect_prompt: str = "a photo of a {defect} on a {product}"
    background_prompt: str = "a photo of a {product}"
    hole_prompt: str = ""
