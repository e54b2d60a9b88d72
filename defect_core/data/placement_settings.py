"""Settings of the section `placement`: where a defect type may be placed (no torch)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from defect_core.settings import Settings

ANY = "*"
"""Stands for all products, or for all defect types of a product."""
_SHORTHANDS = ("anywhere", "like_examples")


class PlacementRule(Settings):
    """Where defects of one type may be placed on one product. The word `like_examples` alone sets the mode only."""

    region: str | None = None
    """Picture in `data/raw/<product>`, such as `roi/head.png`, that is white where the defect type is allowed."""
    rotation: float | None = Field(default=None, ge=0, le=180)
    """Largest rotation in degrees, relative to the product; None: any. With a limit, defects are not mirrored."""
    scale: tuple[float, float] | None = None
    """Smallest and largest size relative to the example; None: 0.8 to 1.2."""
    mode: Literal["anywhere", "like_examples"] = "anywhere"
    """`like_examples`: positions and angles follow those of the real training examples."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in _SHORTHANDS:
                raise ValueError(
                    f"expected {' or '.join(_SHORTHANDS)}, or a mapping with region, rotation, scale, mode"
                )
            return {"mode": value}
        return value

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"roi/[^/\\].*", value) or ".." in value.split("/")):
            raise ValueError("expected a picture below roi/, such as roi/head.png")
        return value

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("expected two positive numbers, the smaller one first")
        return value


def _expand_section(value: Any) -> Any:
    """Write `placement: like_examples` and `placement: {PRODUCT: like_examples}` as full mappings."""
    if isinstance(value, str):
        value = {ANY: value}
    if isinstance(value, Mapping):
        return {name: {ANY: rules} if isinstance(rules, str) else rules for name, rules in value.items()}
    return value


PlacementSection = Annotated[dict[str, dict[str, PlacementRule]], BeforeValidator(_expand_section)]
"""Rules by product and defect type; `*` stands for all others."""


def rules_of(section: Mapping[str, Mapping[str, PlacementRule]], product: str) -> dict[str, PlacementRule]:
    """Return the rules of a product by defect type, `*` for all others; its own entries replace those of `*`."""
    return {**section.get(ANY, {}), **section.get(product, {})}


def rule_for(rules: Mapping[str, PlacementRule], defect: str) -> PlacementRule | None:
    """Return the rule of a defect type from `rules_of`; None without one."""
    return rules.get(defect, rules.get(ANY))
