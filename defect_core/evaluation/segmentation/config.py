"""What a segmenter's training is decided by (no torch: stages read it at start-up)."""

from dataclasses import dataclass

from defect_core.errors import InputError

ARCHITECTURES = ("unet", "upernet", "deeplabv3plus", "segformer")
POOLED = "pooled"
EMBEDDED_ENCODER = "tu-tf_efficientnet_lite0"


@dataclass(frozen=True)
class SegmenterConfig:
    """Settings of one training; the same for every arm.

    Attributes:
        image_size: side in pixels of images and masks; a multiple of 32.
        steps: optimiser steps, the same with and without synthetic data.
        batch_size: images per step.
        learning_rate: peak rate of the one-cycle schedule for the decoder; the encoder has a third of it.
        weight_decay: of AdamW.
        architecture: one of `ARCHITECTURES`, as segmentation_models_pytorch builds them.
        encoder: encoder name of segmentation_models_pytorch.
        encoder_weights: `embedded` (ImageNet, for the default encoder only), `imagenet` (fetched by the library where
            it has them; needs a network once), or `none`.
        decoder_channels: widths of the five U-Net decoder blocks, coarse to fine; with 8 in the last one
            one seed in two learned nothing in 120 steps.
        frozen_stages: of the default encoder; the stem and so many first stages keep their ImageNet weights (generic
            edges at the finest grid: the dearest to train and the least to gain).
        good_fraction: part of each batch that is good images, the same in every arm.
        synthetic_fraction: part of the defect half that is synthetic where an arm has synthetic data; `pooled`: as
            many as there are, so that every defect image, real or synthetic, is drawn equally often.
        validation_fraction: part of the real training defects held out for the validation curve and the best model on it.
    """

    image_size: int = 128
    steps: int = 120
    batch_size: int = 8
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    architecture: str = "unet"
    encoder: str = EMBEDDED_ENCODER
    encoder_weights: str = "embedded"
    decoder_channels: tuple[int, ...] = (96, 64, 32, 24, 16)
    frozen_stages: int = 3
    good_fraction: float = 0.5
    synthetic_fraction: float | str = 0.5
    validation_fraction: float = 0.2

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise InputError(f"segment.image_size: found {self.image_size}; expected a multiple of 32, at least 32")
        for name in ("good_fraction", "synthetic_fraction", "validation_fraction"):
            if name == "synthetic_fraction" and self.synthetic_fraction == POOLED:
                continue
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"segment.{name}: found {getattr(self, name)}; expected a number from 0 to 1")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"segment.architecture: found {self.architecture!r}; expected one of {known}")
        if self.encoder_weights == "embedded" and self.encoder != EMBEDDED_ENCODER:
            raise InputError(
                f"segment.encoder: no embedded weights for {self.encoder!r}; expected {EMBEDDED_ENCODER}, or "
                "segment.encoder_weights: imagenet or none"
            )
        if self.encoder_weights not in ("embedded", "imagenet", "none"):
            raise InputError(
                f"segment.encoder_weights: found {self.encoder_weights!r}; expected embedded, imagenet or none"
            )
        if self.frozen_stages and self.encoder_weights != "embedded":
            raise InputError("segment.frozen_stages: only the embedded encoder has stages to freeze; expected 0")
        if self.steps < 1 or self.batch_size < 2:
            raise InputError("segment: steps must be at least 1 and batch_size at least 2")

    @property
    def good_per_batch(self) -> int:
        """Good images in every batch; at least one image of a batch is defective."""
        return min(round(self.batch_size * self.good_fraction), self.batch_size - 1)


@dataclass(frozen=True)
class DetectorConfig:
    """One detector of anomalib, trained on good images.

    Attributes:
        model: `patchcore` or `draem`.
        backbone: PatchCore's network, a name of timm.
        layers: its stages by number, from 0 at stride 2; the paper's layer2 and layer3 of a ResNet are 2 and 3.
        weights: `embedded` (EfficientNet-Lite0), `none` (random), `imagenet` (timm fetches them), or a safetensors file
            with timm's names, in the project or in DEFECTORY_WEIGHTS.
        coreset: part of the patches that is remembered (paper: 0.1, 0.01).
        steps, learning_rate: of DRAEM.
        batch_size: images at once.
    """

    model: str = "patchcore"
    backbone: str = "tf_efficientnet_lite0"
    layers: tuple[int, ...] = (2, 3)
    weights: str = "embedded"
    coreset: float = 0.1
    steps: int = 700
    learning_rate: float = 1e-4
    batch_size: int = 8
