"""What a classifier's training is decided by (no torch: stages read it at start-up)."""

from dataclasses import dataclass

ARCHITECTURES = ("resnet34", "resnet18", "mobilenet_v3_small")


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of one training; the same for every arm.

    AnomalyDiffusion's protocol, after DFMGAN's: ResNet-34 (text and code; the caption of its table 4 says ResNet-18),
    256 px, Adam at 1e-4, batches of 8, cross-entropy over the defect types of one product, no good images, tested on
    the real images that no training has seen. Its ResNet starts from ImageNet.

    Attributes:
        image_size: side in pixels of the views.
        steps: optimiser steps, the same with and without synthetic data.
        batch_size: images per step; every defect type has the same share of them in every arm.
        learning_rate: of Adam.
        architecture: one of `ARCHITECTURES`, as torchvision builds them.
        view: `image`, the whole; or `crop`, the square around the mask.
        synthetic_fraction: part of the places that goes to synthetic images, or `pooled`, as many as there are.
        validation_fraction: part of the real training images held out for the curve and the best model on it.
    """

    image_size: int = 128
    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 1e-4
    architecture: str = "resnet34"
    view: str = "image"
    synthetic_fraction: float | str = 0.5
    validation_fraction: float = 0.0
