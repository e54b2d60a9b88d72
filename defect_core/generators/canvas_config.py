"""The settings that the diffusion methods share: the part of an image that they generate, and their training views."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from defect_core.generators.registry import Capabilities
from defect_core.generators.variants import VariantConfig
from defect_core.settings import Settings


class AugmentationConfig(Settings):
    """Random changes of the training views; image and mask change together, and a defect stays in view.

    Each number v stands for a uniform choice from -v to v.
    """

    flips: bool = True
    """Flip horizontally and vertically."""
    rotate90: bool | None = None
    """Rotate by multiples of 90 degrees; null: unless the image has a texture with a direction."""
    rotation: float | None = Field(default=None, ge=0, le=180)
    """Rotation in degrees; null: 10, and 3 on a texture with a direction."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """Relative change of the size."""
    shift: float = Field(default=0.05, ge=0, lt=1)
    """Translation as a fraction of the side."""
    crop: bool = False
    """Crop around the defect and enlarge the crop; the aspect ratio may change."""
    brightness: float = Field(default=0.1, ge=0, le=1)
    """Change of the brightness as a fraction of full scale."""
    contrast: float = Field(default=0.15, ge=0, lt=1)
    """Relative change of the contrast."""
    colour: float = Field(default=0.03, ge=0, lt=1)
    """Relative change of each channel."""
    keep: float = Field(default=0.5, ge=0, le=1)
    """Smallest fraction of the defect's area that stays in view; else the geometry stays unchanged."""
    probability: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the views that change."""


class CanvasConfig(VariantConfig):
    """Base class of the settings of methods that generate on a canvas (see `canvas.py`).

    Attributes:
        HAS_NEW_VIEWS: whether the method can train on new views in every step.
    """

    HAS_NEW_VIEWS: ClassVar[bool] = False

    canvas: Literal["local", "whole"] = "local"
    """`whole` generates on the whole image (the papers); `local` in a window around the mask (not in the papers)."""
    context: float = Field(default=2.5, ge=1)
    """Side of a local window divided by the longer side of the mask's bounding box (not in the papers)."""
    min_side: int = Field(default=48, ge=8)
    """Smallest side of a local window in pixels (not in the papers)."""
    variants: int | None = Field(default=24, ge=1)
    """Augmented views of each defect image, encoded before training (not in the papers); null: new views in every
    step (the papers)."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the training views."""
    feather: float = Field(default=1.0, ge=0)
    """Width in pixels of the soft edge of the pasted defect, inside its mask (not in the papers)."""

    @field_validator("variants")
    @classmethod
    def _check_variants(cls, value: int | None) -> int | None:
        if value is None and not cls.HAS_NEW_VIEWS:
            raise ValueError("this method encodes its views before training; expected a number of views")
        return value

    def capabilities(self, declared: Capabilities) -> Capabilities:
        """Return the declared capabilities; without `paste` the background changes."""
        return replace(declared, keeps_background=declared.keeps_background and getattr(self, "paste", True))

    @property
    def encoded_variants(self) -> int:
        """The number of encoded views per example, of a method without `HAS_NEW_VIEWS`."""
        if self.variants is None:
            raise ValueError("variants is null")
        return self.variants
