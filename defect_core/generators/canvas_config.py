"""The settings that the diffusion methods share: in which part of an image they generate."""

from typing import Literal

from pydantic import Field

from defect_core.generators.variants import VariantConfig


class CanvasConfig(VariantConfig):
    """Base class of the settings of methods that generate on a canvas (see `canvas.py`)."""

    canvas: Literal["local", "whole"] = "local"
    """`whole` generates on the whole image (the papers); `local` in a window around the mask (not in the papers)."""
    context: float = Field(default=2.5, ge=1)
    """Side of a local window divided by the longer side of the mask's bounding box (not in the papers)."""
    min_side: int = Field(default=48, ge=8)
    """Smallest side of a local window in pixels (not in the papers)."""
    variants: int = Field(default=24, ge=1)
    """Augmented views of each defect image, encoded before training (not in the papers)."""
    feather: float = Field(default=1.0, ge=0)
    """Width in pixels of the soft edge of the pasted defect, inside its mask (not in the papers)."""
