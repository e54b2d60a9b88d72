"""Settings and capabilities of crop-paste."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="product", keeps_background=True, predicts_mask=False, needs_mask=True, uses_backbone=False
)


class CropPasteConfig(GeneratorConfig):
    """Settings of crop-paste.

    Attributes:
        feather: width in pixels of the soft edge inside the mask.
        match_colour: power, 0 to 1, of the factor between the colours around the source and at the target: the source
            is multiplied by it.
    """

    feather: float = Field(1.0, ge=0)
    match_colour: float = Field(1.0, ge=0, le=1)


CONFIG = CropPasteConfig
