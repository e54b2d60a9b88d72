"""Settings and capabilities of cutpaste."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="none", keeps_background=True, predicts_mask=True, needs_mask=True, uses_backbone=False
)


class CutPasteConfig(GeneratorConfig):
    """Settings of cutpaste.

    Attributes:
        scar_share: part of the samples that are scars (thin turned strips); the rest are patches.
        area: least and greatest area of a patch, as part of the image.
        aspect: greatest ratio of a patch's sides, either way.
        scar_width: least and greatest width of a scar, as part of the image's smaller side.
        scar_length: least and greatest length of a scar, likewise.
        jitter: greatest change of brightness and contrast of what is pasted, as part of it.
    """

    scar_share: float = Field(0.5, ge=0, le=1)
    area: tuple[float, float] = (0.02, 0.15)
    aspect: float = Field(3.3, ge=1)
    scar_width: tuple[float, float] = (0.01, 0.06)
    scar_length: tuple[float, float] = (0.04, 0.1)
    jitter: float = Field(0.1, ge=0, le=1)


CONFIG = CutPasteConfig
