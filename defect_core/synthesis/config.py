"""Settings of the stages `synthesize` and `normals` (no torch)."""

from pydantic import ConfigDict, Field

from defect_core.settings import CountOrMultiple, Settings


class FilterLimits(Settings):
    """What a generated pair must satisfy to be accepted (see `defect_core.synthesis.filter`)."""

    min_change: float = Field(default=2.0, ge=0)
    """Smallest mean absolute change inside the mask, in grey levels of 255."""
    min_area: int = Field(default=4, ge=1)
    """Smallest area of the mask in pixels."""
    max_change_outside: float | None = Field(default=None, ge=0)
    """Largest mean absolute change outside the mask, in grey levels of 255; None: no limit."""
    min_on_product: float = Field(default=0.25, ge=0, le=1)
    """Smallest fraction of the mask that must be on the product."""
    min_distance: float = Field(default=0.0, ge=0)
    """Smallest distance to a real training example, in grey levels of 255, so that copies are rejected; 0 accepts
    all (see `defect_core.synthesis.filter.NearestDefectIndex`)."""


class BatchSettings(FilterLimits):
    """How requests are answered."""

    batch_size: int = Field(default=16, ge=1)
    """Requests that are answered together."""
    max_attempts: float = Field(default=2.0, ge=1)
    """Largest number of requests per accepted pair."""


class SynthesizeConfig(BatchSettings):
    """How many pairs are generated per defect type, and which of them the filter accepts."""

    per_defect: CountOrMultiple = 48
    """Accepted pairs per defect type: a number, or a multiple of the real training images such as `2x`."""

    def target_count(self, real: int) -> int:
        """Return the number of accepted pairs of a defect type with `real` training images; at least 1."""
        if isinstance(self.per_defect, int):
            return self.per_defect
        return max(1, round(float(self.per_defect[:-1]) * real))


class NormalsConfig(Settings):
    """Normal images from the generators with this capability. Without this section none are generated."""

    count: int = Field(default=64, ge=2)
    """Normal images per product and generator."""


class ZeroShotConfig(Settings):
    """A defect type that is generated on a product without examples of it, after the examples of another product."""

    model_config = ConfigDict(populate_by_name=True)

    product: str
    """Product on which the defect is generated."""
    defect: str
    """Defect type."""
    lender: str = Field(alias="from")
    """Product whose examples give places and shapes; `from` in params.yaml."""
