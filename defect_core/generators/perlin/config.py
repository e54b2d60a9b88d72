"""Settings and capabilities of draem-perlin."""

from pydantic import Field

from defect_core.generators.registry import Capabilities, GeneratorConfig

CAPABILITIES = Capabilities(
    scope="none", keeps_background=True, predicts_mask=True, needs_mask=True, uses_backbone=False
)


class DraemPerlinConfig(GeneratorConfig):
    """Settings of draem-perlin."""

    threshold: float = Field(default=0.5, gt=0, lt=0.7)
    """Pixels whose noise, about -0.7 to 0.7, is above this value form blobs. Public code: 0.5."""
    max_cells: int = Field(default=5, ge=1, le=7)
    """Largest number of noise cells along a side, as an exponent of 2: 5 means 32. Public code: 5."""
    max_normal: float = Field(default=0.8, ge=0, lt=1)
    """Largest opacity of the normal image over the texture. Public code: 0.8."""
    blocks: int = Field(default=4, ge=1)
    """Blocks along a side of the shuffled normal image that is the texture; 1 does not shuffle (not in the paper)."""


CONFIG = DraemPerlinConfig
