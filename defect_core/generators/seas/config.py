"""Settings and capabilities of SeaS."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", predicts_mask=True, needs_mask=True, generates_normals=True)


class Config(GeneratorConfig):
    """Settings; defaults are for the embedded backbone on a CPU, the paper's values (Stable Diffusion) in brackets.

    What neither paper nor public code has is marked *.

    Attributes:
        steps: optimiser steps of the first stage (800 per defect of the product).
        learning_rate: of the U-Net (4e-6).
        token_learning_rate: of the learned words (4e-5); they get no weight decay (the public code decays the whole
            vocabulary).
        weight_decay: of AdamW (1e-2), both stages.
        batch_size: defect images per step, and as many normal ones (2).
        anomaly_tokens: N, learned words per defect (4).
        normal_word, anomaly_word: what the learned words begin as ("object" and "defect" in the public code).
        noise_weighting: `noise` is the plain squared error of the noise (paper); `velocity` weighs it by 1 / alpha_bar*
            as the embedded backbone was trained: without it few steps teach little about the layout.
        balance: `image` weighs the noise loss of all places of a defect image alike (paper), `equal` gives the mask and
            the rest the same weight however small the defect*.
        alignment: `paper` is eq. 3; `compat` what the public code computes (see `alignment.py`), the default, for the
            printed form did not find the defects in our few trials.
        alignment_weight: of the DA loss (1).
        canvas: `whole` draws the whole image (paper), `local` a window around the mask*.
        context, min_side: of a local window: its side over the defect's bounding box, and its least side in pixels*.
        variants: augmented views of each real defect that are encoded before training*.
        normals: most good images that are learned from (60).
        augmentation: `rotate_flip` is quarter turns and flips (paper, except VisA), `none`; `full` the house's
            augmentation, with small turns, shifts and changes of light*.
        mask_steps, mask_learning_rate: of the second stage (800 per defect, 5e-4).
        mask_width: channels of the mask branch, a multiple of 24 (192).
        mask_layers: its self-attention layers (4).
        mask_times: the second stage draws times from this last part of the schedule*, for masks are read in the last
            steps only (1, all times).
        refinement: `paper` closes each refinement module with a 3 × 3 convolution, `compat` does not, as the code.
        focal_gamma: of the focal losses (2).
        sampling_steps: of DPM-Solver++ (25).
        guidance_scale: classifier-free guidance (8 on MVTec, 2 on VisA, 5 on MVTec 3D in the public code; the paper
            does not say); 1 is off.
        normal_guidance_scale: of normal images (the same in the public code).
        reference: `paper` scales and noises the normal image's latent to the schedule's last step; `compat` leaves it
            unscaled and noises it by a schedule of 1500 steps (public code).
        ref_strength: skips this first part of the sampling, so that more of the normal image stays* (0).
        mask_threshold: tau (0.2).
        mask_average: last steps whose masks are averaged (3).
        reach: the defect's words are heard, and its mask may lie, in the requested mask and this many pixels of the
            canvas around it*; None: everywhere (paper). Elsewhere the normal prompt guides.
        residual: walk twice with the same noise, with the defect's words and with the normal prompt alone, and add the
            difference to the normal image*: what the walk does to the product itself falls out. Only with `paste` and a
            `reach`.
        paste: put what was drawn inside the predicted mask into the normal image, which is kept elsewhere*; for
            `canvas: local`, or a high `ref_strength`, where both agree at the mask's edge.
        feather: width in pixels of the paste's soft edge, inside the mask*.
        defect_prompt, normal_prompt: the unbalanced prompt and its normal half; the slots are learned words.
    """

    steps: int = Field(700, ge=1)
    learning_rate: float = Field(4e-4, gt=0)
    token_learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    batch_size: int = Field(4, ge=1)
    anomaly_tokens: int = Field(4, ge=1)
    normal_word: str = "object"
    anomaly_word: str = "defect"
    noise_weighting: Literal["noise", "velocity"] = "velocity"
    balance: Literal["image", "equal"] = "equal"
    alignment: Literal["paper", "compat"] = "compat"
    alignment_weight: float = Field(2.0, ge=0)
    canvas: Literal["whole", "local"] = "local"
    context: float = Field(2.5, ge=1)
    min_side: int = Field(48, ge=8)
    variants: int = Field(24, ge=1)
    normals: int = Field(60, ge=1)
    augmentation: Literal["rotate_flip", "full", "none"] = "rotate_flip"
    mask_steps: int = Field(150, ge=1)
    mask_learning_rate: float = Field(1e-3, gt=0)
    mask_width: int = Field(24, ge=24)
    mask_layers: int = Field(4, ge=0)
    mask_times: float = Field(0.2, gt=0, le=1)
    refinement: Literal["paper", "compat"] = "paper"
    focal_gamma: float = Field(2.0, ge=0)
    sampling_steps: int = Field(25, ge=2)
    guidance_scale: float = Field(7.0, ge=0)
    normal_guidance_scale: float = Field(2.0, ge=0)
    reference: Literal["paper", "compat"] = "paper"
    ref_strength: float = Field(0.35, ge=0, lt=1)
    mask_threshold: float = Field(0.2, gt=0, lt=1)
    mask_average: int = Field(3, ge=1)
    reach: float | None = Field(2.0, ge=0)
    residual: bool = True
    paste: bool = True
    feather: float = Field(1.0, ge=0)
    defect_prompt: str = "a {product} with {defect}"
    normal_prompt: str = "a {product}"

    @field_validator("mask_width")
    @classmethod
    def _divides(cls, value: int) -> int:
        if value % 24:
            raise ValueError("expected a multiple of 24")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> "Config":
        if self.reference == "compat" and self.ref_strength > 0:
            raise ValueError("reference: compat begins at the schedule's last step only; expected ref_strength: 0")
        return self

    @property
    def adds_difference(self) -> bool:
        """Whether `residual` applies."""
        return self.residual and self.paste and self.reach is not None
