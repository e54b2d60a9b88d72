"""Settings and capabilities of the stain generator. This module must not import torch."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="none", keeps_background=True, needs_mask=True, has_strength=True, uses_backbone=False
)


class StainConfig(GeneratorConfig):
    """Settings of the stain generator."""

    darkness: float = Field(default=0.5, ge=0, le=1)
    """Largest fraction of the brightness that a stain of strength 1 removes."""
    blur: float = Field(default=2.0, gt=0)
    """Standard deviation in pixels of the Gaussian that softens the edge of a stain."""


CONFIG = StainConfig
