"""Settings of the stage `detect` (no torch)."""

from typing import Annotated, Literal

from pydantic import Field

from defect_core.settings import Seeds, Settings

DetectorName = Literal["patchcore", "draem"]


class DetectorConfig(Settings):
    """Anomaly detectors of anomalib, trained on normal images. Without this section none is trained.

    Each is trained on the real normal images. With the section `normals` it is also trained on those together with the
    normal images of each generator.
    """

    models: tuple[DetectorName, ...] = Field(default=("patchcore",), min_length=1)
    """Which detectors."""
    seeds: Seeds = (0,)
    """One training per seed."""
    image_size: int = Field(default=128, ge=32, multiple_of=32)
    """Side in pixels of the images."""
    backbone: str = "tf_efficientnet_lite0"
    """Feature extractor of PatchCore, a name of timm."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(2, 3), min_length=1)
    """Stages of the feature extractor, from 0 at stride 2; layer2 and layer3 of a ResNet are 2 and 3."""
    weights: str = "embedded"
    """`embedded` (EfficientNet-Lite0), `none` (random), `imagenet` (timm fetches them), or a safetensors file with
    timm's names, in the project or in DEFECTORY_WEIGHTS."""
    coreset: float = Field(default=0.1, gt=0, le=1)
    """Fraction of the patches that PatchCore keeps (paper: 0.1 and 0.01)."""
    steps: int = Field(default=700, ge=1)
    """Optimiser steps of DRAEM."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of DRAEM."""
    batch_size: int = Field(default=8, ge=2)
    """Images per step."""
