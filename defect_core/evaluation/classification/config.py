"""Settings of the stage `classify` (no torch)."""

from typing import Literal

from pydantic import Field

from defect_core.settings import PooledFraction, Seeds, Settings


class ClassifierConfig(Settings):
    """A classifier of the defect types of one product; the same for every arm. Without this section none is trained.

    The protocol of AnomalyDiffusion (Hu et al. 2024), after DFMGAN (Duan et al. 2023): ResNet-34 (text and code; the
    caption of table 4 says ResNet-18), 256 px, Adam at 1e-4, batches of 8, cross-entropy over the defect types of one
    product, no normal images, tested on real images that no training has used.
    """

    seeds: Seeds = (0, 1, 2)
    """One training per seed."""
    image_size: int = Field(default=128, ge=32)
    """Side in pixels of the views."""
    steps: int = Field(default=300, ge=1)
    """Optimiser steps, the same with and without synthetic pairs."""
    batch_size: int = Field(default=8, ge=2)
    """Images per step; every defect type has the same fraction of them in every arm."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of Adam."""
    architecture: Literal["resnet34", "resnet18", "mobilenet_v3_small"] = "resnet34"
    """Architecture of torchvision."""
    weights: str | None = None
    """A safetensors file in torchvision's layout, in the project or in DEFECTORY_WEIGHTS; None: random weights."""
    view: Literal["image", "crop"] = "image"
    """`image`: the whole image. `crop`: the square around the mask, of test images too, which no inspection has."""
    synthetic_fraction: PooledFraction = 0.5
    """Fraction of the batch slots that is synthetic; `pooled`: every image is chosen equally often."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the real training images that is held out for the curve and the best model on it."""
