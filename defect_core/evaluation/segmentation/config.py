"""Settings of the stages `segment` and `segment_unified` (no torch)."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from defect_core.settings import AUTO, AutoFraction, Seeds, Settings

EMBEDDED_ENCODER = "tu-tf_efficientnet_lite0"


def _image_size(value: Any) -> int | str:
    """Accept a multiple of 32 or `auto`."""
    if value == AUTO:
        return AUTO
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 32 and value % 32 == 0:
        return int(value)
    raise ValueError("expected a multiple of 32, at least 32, or auto")


ImageSize = Annotated[int | Literal["auto"], BeforeValidator(_image_size)]


class SegmenterConfig(Settings):
    """The segmentation network and its training; the same for every arm."""

    seeds: Seeds = (0, 1, 2)
    """One training per seed."""
    image_size: ImageSize = 128
    """Side in pixels to which images and masks are resized; a multiple of 32. `auto`: images keep their aspect ratio,
    at a resolution at which the narrowest defect is at least 3 px wide (see `evaluation.segmentation.scale`). The
    segmenter is trained on crops and tested with tiles. Choose it for large images and thin defects."""
    steps: int = Field(default=120, ge=1)
    """Optimiser steps, the same with and without synthetic pairs."""
    batch_size: int = Field(default=8, ge=2)
    """Images per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the one-cycle schedule for the decoder; the encoder has a third of it."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW."""
    architecture: Literal["unet", "upernet", "deeplabv3plus", "segformer"] = "unet"
    """Architecture of segmentation_models_pytorch."""
    encoder: str = EMBEDDED_ENCODER
    """Encoder name of segmentation_models_pytorch."""
    encoder_weights: Literal["embedded", "imagenet", "none"] = "embedded"
    """`embedded`: ImageNet weights of the default encoder, in the package. `imagenet`: fetched by the library (needs a
    network once). `none`: random."""
    decoder_channels: tuple[int, ...] = (96, 64, 32, 24, 16)
    """Widths of the five U-Net decoder blocks, coarse to fine. With 8 channels in the last block, one seed in two
    learned nothing in 120 steps."""
    frozen_stages: int = Field(default=3, ge=0)
    """The stem and this many first stages of the default encoder keep their ImageNet weights. They hold generic
    edges at the finest resolution: the most expensive part to train, with the least gain."""
    normal_fraction: float = Field(default=0.5, ge=0, le=1)
    """Fraction of each batch that is normal images, the same in every arm."""
    synthetic_fraction: AutoFraction = "auto"
    """Fraction of the defect slots of a batch that is synthetic. `auto`: a third beside up to four real examples of
    each defect type, less beside more (`batches.auto_synthetic_fraction`). `pooled`: every defect image, real or
    synthetic, is chosen equally often."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the real training defects that is held out for a validation curve and a second result. 0 by default:
    the generators were trained on those images, so holding them out would handicap `real_only` alone."""
    image_score: Literal["max_of_mean", "max"] = "max_of_mean"
    """Image score: the maximum of the score map after averaging in a window, or of the map itself."""
    folds: int = Field(default=2, ge=0)
    """Folds of the training images for the thresholds of the image score: 0, or at least 2. One more segmenter per
    fold is trained without its images, at the first seed. 0: no thresholds, escapes and overkill."""
    fold_steps: float = Field(default=0.5, gt=0, le=1)
    """Optimiser steps of the segmenter of a fold, as a fraction of `steps`."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.encoder_weights == "embedded" and self.encoder != EMBEDDED_ENCODER:
            raise ValueError(
                f"encoder: no embedded weights for {self.encoder!r}; expected {EMBEDDED_ENCODER}, or "
                "encoder_weights: imagenet or none"
            )
        if self.folds == 1:
            raise ValueError("folds: 1; expected 0, or at least 2")
        if self.frozen_stages and self.encoder_weights != "embedded":
            raise ValueError("frozen_stages: only the embedded encoder has stages to freeze; expected 0")
        return self

    @property
    def normal_per_batch(self) -> int:
        """Number of normal images in every batch; at least one image of a batch has a defect."""
        return min(round(self.batch_size * self.normal_fraction), self.batch_size - 1)


class SegmentUnifiedConfig(Settings):
    """One segmenter over all products, with the settings of `segment`. Without this section none is trained."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; None: `segment.steps` for each product."""
