"""Settings and capabilities of crop-paste."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="product", keeps_background=True, predicts_mask=False, needs_mask=True, uses_backbone=False
)


class CropPasteConfig(GeneratorConfig):
    """Settings of crop-paste."""

    feather: float = Field(default=1.0, ge=0)
    """Width in pixels of the soft edge inside the mask."""
    match_colour: float = Field(default=1.0, ge=0, le=1)
    """Exponent of the factor that adapts the source's colours to the place; 0 keeps the source's colours."""


CONFIG = CropPasteConfig
