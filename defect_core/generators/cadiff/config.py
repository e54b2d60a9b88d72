"""Settings and capabilities of CADiff."""

from typing import Literal

from pydantic import Field, field_validator

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", keeps_background=True, needs_mask=True, has_strength=True)

SLOTS = ("{context}", "{anomaly}")


class Config(GeneratorConfig):
    """Settings. The defaults are for the embedded backbone; the paper's values, for Stable Diffusion 1.5, stand in
    brackets. Where the paper says nothing, the choice is ours and marked *.

    Attributes:
        steps: optimiser steps over all defects of the product (paper: 1000 epochs).
        learning_rate: of the control branch, constant in the paper, with warm-up and cosine here (paper: 1e-5).
        token_learning_rate: of the tokens* (paper: 1e-5, the same for all).
        weight_decay: of AdamW; none on the tokens*.
        batch_size: examples a step (paper: 16).
        variants: augmented views of each real defect that are encoded before training*.
        normal_share: part of each batch that shows a good image in the place of a defective one, told of the defect
            with its token's attention weighted 0 inside the mask*: it teaches what no intensity looks like (paper: 0).
        init_word: the word whose embedding all tokens begin with (paper: anomaly).
        templates: prompts with the slots {context} and {anomaly}; each example draws one, sampling takes the first*.
        balance: `image` weighs the noise loss of all places alike (paper), `equal` gives the mask and the rest the same
            weight however small the defect*.
        localising_weight: γ (paper: 1e-3).
        localising: `token` compares each token's map with its mask*, `balanced` with equal weight inside and outside*;
            `paper` their mean, where errors cancel (eq. 5).
        loss_sides: sides of the attention layers that the localising loss reads; empty is all (paper: all).
        contrast_weight: β (paper: 5e-4).
        temperature: τ of the contrast*.
        contrast_views: views, templates drawn at random, of each token in the contrast* (paper: the batch).
        joining: how the control branch meets the U-Net: `attention` is the paper's interaction module, `addition`
            ControlNet's own sum, `both` the two together*.
        control_scale: 1 is the whole control branch, 0 none*.
        tune_denoiser: also train the U-Net, at `learning_rate`, which the embedded one needs; the paper says both that
            it is frozen and that it is trained.
        canvas: `local` draws in a window around the mask*, `whole` on the whole image (paper).
        context: side of a local window over that of the defect's bounding box*.
        min_side: least side of a local window, in pixels*.
        sampling_steps: T, of DDIM (paper: 50).
        guidance_scale: of classifier-free guidance; 1 is off*.
        start: `normal` begins with the normal image noised to `start_level` of the T levels*, `noise` with pure noise
            (paper).
        start_level: see `start`.
        paste: keep the normal image outside the mask: its noised latents at every step, its pixels in the end*. False
            draws everything (paper), and then the background is no longer the normal image's.
        strength_range: w of a request that names no strength is drawn evenly from this (paper: 0.5 to 1.5).
        focus_threshold: α_thr (paper: 0.75).
        focus_latched: once focused, a sample stays re-weighted*; False decides anew at each step.
        focus_side: α is measured on the layers of the side nearest to this (paper: 16).
        masked_focus: re-weight inside the mask only (paper: yes).
        feather: width in pixels of the pasted defect's soft edge, inside the mask*.
    """

    steps: int = Field(300, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    token_learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    batch_size: int = Field(8, ge=1)
    variants: int = Field(24, ge=1)
    normal_share: float = Field(0.25, ge=0, lt=1)
    init_word: str = Field("anomaly", min_length=1)
    templates: tuple[str, ...] = Field(
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
    balance: Literal["image", "equal"] = "equal"
    localising_weight: float = Field(1.0, ge=0)
    localising: Literal["balanced", "token", "paper"] = "balanced"
    loss_sides: tuple[int, ...] = ()
    contrast_weight: float = Field(5e-4, ge=0)
    temperature: float = Field(0.1, gt=0)
    contrast_views: int = Field(4, ge=2)
    joining: Literal["attention", "addition", "both"] = "both"
    control_scale: float = Field(1.0, ge=0, le=1)
    tune_denoiser: bool = True
    canvas: Literal["local", "whole"] = "local"
    context: float = Field(2.5, ge=1)
    min_side: int = Field(48, ge=8)
    sampling_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(1.0, ge=1)
    start: Literal["normal", "noise"] = "normal"
    start_level: float = Field(1.0, gt=0, le=1)
    paste: bool = True
    strength_range: tuple[float, float] = (0.5, 1.5)
    focus_threshold: float = Field(0.75, ge=0, le=1)
    focus_latched: bool = True
    focus_side: int = Field(16, ge=1)
    masked_focus: bool = True
    feather: float = Field(1.0, ge=0)

    @field_validator("templates")
    @classmethod
    def _has_slots(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if any(template.count(slot) != 1 for slot in SLOTS):
                raise ValueError(f"expected {{context}} and {{anomaly}} once in each template, not {template!r}")
        return templates

    @field_validator("strength_range")
    @classmethod
    def _is_a_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not -2 <= limits[0] <= limits[1] <= 2:
            raise ValueError("expected two numbers from -2 to 2, the smaller first")
        return limits
