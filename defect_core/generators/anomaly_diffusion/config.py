"""Settings and capabilities of AnomalyDiffusion."""

from typing import Literal

from pydantic import Field, field_validator

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(scope="product", keeps_background=True, predicts_mask=False, needs_mask=True)


class EncoderConfig(GeneratorConfig):
    """The mask encoder E. Defaults suit the embedded backbone; the public code's sizes in brackets.

    Attributes:
        side: side in pixels that a mask is brought to [256].
        channels, depths: of the residual stages, each halving the side; the last three feed the pyramid
            [(64, 128, 256, 512), (3, 4, 14, 3)].
        width: channels of the feature pyramid [512].
        head_width: channels of each token's head [the text's width].
    """

    side: int = Field(64, ge=32, multiple_of=16)
    channels: tuple[int, int, int, int] = (16, 16, 32, 64)
    depths: tuple[int, int, int, int] = (1, 1, 1, 1)
    width: int = Field(32, ge=1)
    head_width: int = Field(64, ge=1)


class MaskModelConfig(GeneratorConfig):
    """The learned mask generator, textual inversion on mask images; used with `masks: generated` only.

    Attributes:
        tokens: k', words per defect (paper: 4; appendix 2; public code 16).
        steps: optimiser steps over all defects (paper: 30 000 per defect, public code 5000).
        learning_rate: of the words (paper: 5e-3).
        prompt: template with the slot {shape}*.
        sampling_steps: DDIM steps, eta 1 (public code: 100).
        guidance_scale: classifier-free guidance (public code: 5).
        threshold: on the mean of the channels, which lie in [-1, 1] (public code: 0.8).
        border_share: a mask that sets more than this share of a border row or column is rejected (public code: 1/3).
    """

    tokens: int = Field(4, ge=1)
    steps: int = Field(200, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    prompt: str = "a black and white image of a {shape}"
    sampling_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(5.0, ge=1)
    threshold: float = Field(0.8, gt=-1, lt=1)
    border_share: float = Field(1 / 3, gt=0, le=1)

    @field_validator("prompt")
    @classmethod
    def _has_its_slot(cls, prompt: str) -> str:
        if prompt.count("{shape}") != 1:
            raise ValueError(f"the prompt {prompt!r} has no slot {{shape}}, or several; expected one")
        return prompt


class AnomalyDiffusionConfig(GeneratorConfig):
    """Settings; defaults suit the embedded backbone, the paper's values in brackets; choices of ours are marked *.

    Attributes:
        anomaly_tokens: k, words per defect for how it looks [8; public code 4].
        spatial_tokens: n, words for where it is, made from the mask by one encoder for all defects [4].
        encoder: the mask encoder's size.
        init_word: word that every anomaly token begins at (public code; the paper begins at random).
        prompts: templates with the slot {anomaly}, one drawn per training image; sampling uses the first.
        steps: optimiser steps over all defects [300 000 for 73 defects].
        learning_rate: of the anomaly tokens [5e-3; public code 2e-2 in effect].
        encoder_learning_rate: of the mask encoder [5e-3].
        weight_decay, batch_size: of AdamW [0, 4].
        mask_policy: how the loss' mask comes to the latents' size: `max` loses no defect*, `bilinear_half` is the
            public code's, where small defects vanish.
        reduction: `masked_mean` divides by the mask's area*, `global_mean` by the whole latent (public code), `sum`
            not at all (paper's formula).
        tune_denoiser: also tune the U-Net [false]; for a backbone too weak to draw a defect that it is only told of*.
        denoiser_learning_rate: of the U-Net if it is tuned*.
        canvas: `local` draws in a window around the mask*, `whole` on the whole image [whole].
        context: side of a local window over that of the defect's bounding box*.
        min_side: least side of a local window, in pixels*.
        variants: augmented views of each real defect that are encoded before training*.
        sampling_steps: T of DDIM [200].
        eta: how random DDIM is [1].
        guidance_scale: classifier-free guidance against the empty text; 1 is off [1].
        reweighting: adaptive attention re-weighting: `paper` from the decoded image, `official` as the public code
            does it, in the latents, or `off` (the public code's default).
        min_difference: least squared difference per pixel (sum over channels in [-1, 1]) that `paper` divides by*.
        masks: `given` draws where the request says; `generated` draws a new shape there with the learned mask model.
        mask_model: settings of that model.
        feather: width in pixels of the composite's soft edge, inside the mask*.
    """

    anomaly_tokens: int = Field(8, ge=1)
    spatial_tokens: int = Field(4, ge=1)
    encoder: EncoderConfig = EncoderConfig()
    init_word: str = "anomaly"
    prompts: tuple[str, ...] = Field(
        ("a photo of a {anomaly}", "a close photo of a {anomaly}", "a picture of the {anomaly}", "one {anomaly}"),
        min_length=1,
    )
    steps: int = Field(300, ge=1)
    learning_rate: float = Field(2e-2, gt=0)
    encoder_learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(8, ge=1)
    mask_policy: Literal["max", "bilinear_half"] = "max"
    reduction: Literal["masked_mean", "global_mean", "sum"] = "masked_mean"
    tune_denoiser: bool = True
    denoiser_learning_rate: float = Field(2e-4, gt=0)
    canvas: Literal["local", "whole"] = "local"
    context: float = Field(2.5, ge=1)
    min_side: int = Field(48, ge=8)
    variants: int = Field(24, ge=1)
    sampling_steps: int = Field(50, ge=1)
    eta: float = Field(1.0, ge=0, le=1)
    guidance_scale: float = Field(1.0, ge=1)
    reweighting: Literal["off", "paper", "official"] = "paper"
    min_difference: float = Field(0.5, gt=0)
    masks: Literal["given", "generated"] = "given"
    mask_model: MaskModelConfig = MaskModelConfig()
    feather: float = Field(1.0, ge=0)

    @field_validator("prompts")
    @classmethod
    def _each_has_its_slot(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if prompt.count("{anomaly}") != 1:
                raise ValueError(f"the prompt {prompt!r} has no slot {{anomaly}}, or several; expected one")
        return prompts


CONFIG = AnomalyDiffusionConfig
