"""Settings and capabilities of draem-perlin."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="none", keeps_background=True, predicts_mask=True, needs_mask=True, uses_backbone=False
)


class DraemPerlinConfig(GeneratorConfig):
    """Settings of draem-perlin.

    Attributes:
        threshold: of the noise, about -0.7 to 0.7; what lies above is the defect.
        max_cells: greatest number of noise cells along a side, as a power of two: 5 is 32.
        max_normal: greatest share of the normal image that shows through.
        blocks: side in blocks of the shuffled normal image that serves as texture; 1 does not shuffle.
    """

    threshold: float = Field(0.5, gt=0, lt=0.7)
    max_cells: int = Field(5, ge=1, le=7)
    max_normal: float = Field(0.8, ge=0, lt=1)
    blocks: int = Field(4, ge=1)


CONFIG = DraemPerlinConfig
