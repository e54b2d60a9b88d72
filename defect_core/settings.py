"""The base class of all settings, and value types that several sections share.

Each section of params.yaml is a subclass that is defined beside the code it configures.
Importing this module loads no torch.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

AUTO = "auto"
POOLED = "pooled"


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, and values do not change after loading.

    The string below an attribute describes it; `model_fields[name].description` returns that text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _fraction_or(*keywords: str) -> Callable[[Any], float | str]:
    """Return a check that accepts a number from 0 to 1 or one of `keywords`."""

    def check(value: Any) -> float | str:
        if value in keywords:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        raise ValueError(f"expected a number from 0 to 1, or {' or '.join(keywords)}")

    return check


def _count_or_multiple(value: Any) -> int | str:
    """Accept a count of at least 1, or a multiple such as `2x`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?x", value) and float(value[:-1]) > 0:
        return value
    raise ValueError("expected a number of at least 1, or a multiple of the real count such as 2x")


PooledFraction = Annotated[float | str, BeforeValidator(_fraction_or(POOLED))]
AutoFraction = Annotated[float | str, BeforeValidator(_fraction_or(AUTO, POOLED))]
CountOrMultiple = Annotated[int | str, BeforeValidator(_count_or_multiple)]


def describe_first_error(error: ValidationError) -> tuple[str, str]:
    """Return the field of the first validation error and what is wrong with it, with the value found."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return field, "unknown key"
    found = first.get("input")
    if first["type"] == "value_error":
        return field, f"{first.get('ctx', {}).get('error')}, found {found!r}"
    return field, f"{first['msg'][0].lower() + first['msg'][1:]}, found {found!r}"
