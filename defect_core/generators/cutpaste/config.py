"""Settings and capabilities of cutpaste."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="none", keeps_background=True, predicts_mask=True, needs_mask=True, uses_backbone=False
)


class CutPasteConfig(GeneratorConfig):
    """Settings of cutpaste."""

    scar_fraction: float = Field(default=0.5, ge=0, le=1)
    """Probability of a scar (a thin rotated strip) instead of a patch (not in the paper)."""
    area: tuple[float, float] = (0.02, 0.15)
    """Smallest and largest area of a patch, as a fraction of the image. Paper: 0.02 to 0.15."""
    aspect: float = Field(default=3.3, ge=1)
    """Largest ratio of a patch's sides. Paper: 3.3."""
    scar_width: tuple[float, float] = (0.01, 0.06)
    """Smallest and largest width of a scar, as a fraction of the image's shorter side."""
    scar_length: tuple[float, float] = (0.04, 0.1)
    """Smallest and largest length of a scar, as a fraction of the image's shorter side."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """Largest relative change of the brightness and the contrast of the pasted pixels. Paper: 0.1."""


CONFIG = CutPasteConfig
