"""Settings and capabilities of DefectDiffu."""

from typing import Literal

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="catalogue", keeps_background=True, predicts_mask=True, has_strength=True, zero_shot=True, uses_backbone=True
)


class Config(GeneratorConfig):
    """Settings; where the paper says nothing, the choice is ours and marked *.

    `keeps_background` is promised with `paste` on, the default.

    Attributes:
        dit: `embedded` (small, ships with the package, for the backbone `embedded`); a folder in diffusers' layout; or
            a hub name such as `facebook/DiT-XL-2-512` (weights CC-BY-NC 4.0: no commercial use).
        text: `hashed` (no weights; every word has a fixed random direction)*, or a folder with CLIP's `text_encoder/`
            and `tokenizer/` (paper: CLIP).
        split: blocks of the background, defect and fusion part (paper: 10, 10, 8 of 28); None keeps that proportion.
        steps: optimiser steps over the whole catalogue (public code: 1501 epochs).
        learning_rate, weight_decay, batch_size: of AdamW* (public code: 1e-5, 1e-8, 2).
        added_learning_rate: of the parts that a DiT has not: text layer, cross-attention, mask head* (public code: the
            same 1e-5).
        variants, good_variants: augmented views of each defective and each good image that are encoded at the start*.
        defect_share: share of a batch that shows defects; products and defects are drawn evenly*.
        canvas: `local` draws in a window around the requested mask*, `whole` on the whole image (paper).
        context: side of a local window over that of the defect's bounding box*.
        min_side: least side of a local window, in pixels*.
        focus_share: share of the defect views whose place is told in training*; told in sampling too unless 0.
        drop_product, drop_defect: p1 and p2 of algorithm 1 (paper: 0.2 each).
        mask_weight: lambda of eq. 11 (paper: 0.2).
        variance_weight: of the learned variance's bound (not in the paper; public code: 1).
        alpha: of eq. 8 (paper: 1e-3; public code: 1e-4).
        weight_cap: noise losses are weighted by min(1 / alpha_bar, weight_cap); 1 is the paper's*.
        detach_ratio: no gradient through R* (public code: gradient).
        gradient_checkpointing: less memory, more time.
        residual: walk twice with the same noise, with strength w_d and with 0, and add the difference to the normal
            image*: what the walk does to the product itself falls out. Only with `paste` and from `normal`.
        sampling_steps: of the ancestral sampler (public code: 50).
        guidance: `three_branch` (paper, eq. 4); `two_branch` is the public code's eps(good, p) + w (eps(d, p) −
            eps(good, p)), on all channels (the public code guides the first three of four).
        product_scale: w_p*.
        strength_range: w_d is drawn from here by the request's seed where the request says none* (public code: 0.5 to
            2.5, one after the other).
        start: `normal` starts from the requested normal image, noised to `start_level` of the steps*; `noise` from pure
            noise (paper), which draws another background.
        mask_share: the mask is averaged over this last share of the steps (paper: the last 100 of 1000).
        mask_contrast: least difference of the mask's two classes, of 1; below it the predicted mask is rejected*.
        reach: how far the mask may go beyond the requested one, in pixels of the canvas*; None: as far as predicted.
        paste: only the pixels in the mask are taken over into the normal image*; else the whole canvas.
        feather: width in pixels of the paste's soft edge, inside the mask*.
    """

    dit: str = "embedded"
    text: str = "hashed"
    split: tuple[int, int, int] | None = None
    steps: int = Field(700, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    added_learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-8, ge=0)
    batch_size: int = Field(16, ge=1)
    variants: int = Field(24, ge=1)
    good_variants: int = Field(6, ge=1)
    defect_share: float = Field(0.6, gt=0, le=1)
    canvas: Literal["local", "whole"] = "local"
    context: float = Field(2.5, ge=1)
    min_side: int = Field(48, ge=8)
    focus_share: float = Field(0.7, ge=0, le=1)
    drop_product: float = Field(0.2, ge=0, le=1)
    drop_defect: float = Field(0.2, ge=0, le=1)
    mask_weight: float = Field(1.0, ge=0)
    variance_weight: float = Field(1.0, ge=0)
    alpha: float = Field(1e-3, gt=0)
    weight_cap: float = Field(5.0, ge=1)
    detach_ratio: bool = True
    gradient_checkpointing: bool = False
    residual: bool = True
    sampling_steps: int = Field(25, ge=1)
    guidance: Literal["three_branch", "two_branch"] = "three_branch"
    product_scale: float = Field(1.0, ge=0)
    strength_range: tuple[float, float] = (1.5, 3.5)
    start: Literal["normal", "noise"] = "normal"
    start_level: float = Field(0.6, gt=0, le=1)
    mask_share: float = Field(0.1, gt=0, le=1)
    mask_contrast: float = Field(0.1, ge=0, le=1)
    reach: float | None = Field(2.0, ge=0)
    paste: bool = True
    feather: float = Field(1.0, ge=0)
