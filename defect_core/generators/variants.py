"""Variants: sets of values that give a method as its paper or its public code has it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from defect_core.generators.registry import GeneratorConfig

Variant = Literal["embedded", "paper", "official"]
EMBEDDED = "embedded"
Values = Mapping[str, Any]


class VariantConfig(GeneratorConfig):
    """Base class of the settings of methods from papers.

    A subclass assigns `VARIANTS`: variant -> values of keys that differ from the defaults; sections are nested
    mappings. A key that is not given has the value of the variant, else its default. `embedded` is the defaults.
    """

    VARIANTS: ClassVar[Mapping[str, Values]] = {}

    variant: Variant = Field(default=EMBEDDED)
    """Values of the keys that are not given: `embedded`, this project's for its small models; `paper`, the paper's;
    `official`, those of its public code, where this made the tables."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_variant(cls, given: Any) -> Any:
        values = cls.VARIANTS.get(given.get("variant", EMBEDDED)) if isinstance(given, Mapping) else None
        return given if values is None else _merge(values, given)

    @field_validator("variant", mode="before")
    @classmethod
    def _check_variant(cls, value: Any) -> Any:
        if value not in cls.variant_names():
            raise ValueError(f"this method has the variants {' and '.join(cls.variant_names())}")
        return value

    @classmethod
    def variant_names(cls) -> tuple[str, ...]:
        """Return the variants that the method has; the first is `embedded`."""
        return EMBEDDED, *cls.VARIANTS


def _merge(values: Values, given: Values) -> dict[str, Any]:
    """Return `values` replaced by `given`, key by key, also inside sections."""
    merged = dict(values)
    for key, value in given.items():
        preset = merged.get(key)
        if isinstance(value, Mapping) and isinstance(preset, Mapping):
            value = _merge(preset, value)
        merged[key] = value
    return merged
