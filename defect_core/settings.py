"""The base class of all settings, and value types that several sections share.

Each section of params.yaml is a subclass that is defined beside the code it configures.
Importing this module loads no torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from defect_core.errors import suggest

AUTO = "auto"
POOLED = "pooled"
MAX_NUMBER = 1e12
"""Largest absolute value of a floating-point number in the settings."""
MAX_INTEGER = 2**63 - 1
"""Largest absolute value of an integer, such as a derived seed."""
MAX_SEED = 2**31 - 1


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, and values do not change after loading.

    The string below an attribute describes it; `model_fields[name].description` returns that text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_plain_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers that no setting can mean, and a boolean for a number, which pydantic would read as 1."""
        allowed = _types_in(cls.model_fields[info.field_name or ""].annotation)
        holds_settings = any(isinstance(kind, type) and issubclass(kind, Settings) for kind in allowed)
        if not (holds_settings and isinstance(value, Mapping | Sequence)):  # nested settings check their own fields
            _check_numbers(value, allowed | ({bool, str} if Any in allowed else set()))
        return value


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


def _types_in(annotation: Any) -> set[Any]:
    """Return an annotation and all types that it contains."""
    return {annotation}.union(*(_types_in(part) for part in get_args(annotation)))


def _check_numbers(value: Any, allowed: set[Any]) -> None:
    if isinstance(value, bool):
        if bool not in allowed:
            raise ValueError("expected no true or false")
    elif isinstance(value, int | float):
        limit = MAX_INTEGER if isinstance(value, int) else MAX_NUMBER
        if not abs(value) <= limit:  # also NaN
            raise ValueError(f"expected a finite number of at most {limit:g}")
    elif isinstance(value, str) and str not in allowed:
        # pydantic also reads numbers from text, such as 1e300, which YAML takes for a string.
        if re.fullmatch(r"\s*[+-]?(\.?inf(inity)?|\.?nan|[0-9._]+(e[+-]?[0-9]+)?)\s*", value, re.IGNORECASE):
            try:
                number = float(value)
            except ValueError:
                return
            _check_numbers(number, allowed)
    elif isinstance(value, Mapping):
        for part in value.values():
            _check_numbers(part, allowed)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_numbers(part, allowed)


def _check_unique(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) != len(values):
        raise ValueError("a seed is listed twice; expected each once")
    return values


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_check_unique)]


def prompt_template(*fields: str) -> AfterValidator:
    """Return a check of a prompt: its placeholders are `{NAME}` with a name of `fields`, and nothing else in braces."""

    def check(prompt: str) -> str:
        expected = " or ".join(f"{{{name}}}" for name in fields) or "no placeholder"
        try:
            parts = list(Formatter().parse(prompt))
        except ValueError as error:
            raise ValueError(f"{error}; expected {expected}; write a brace itself as {{{{ or }}}}") from None
        for _, name, form, conversion in parts:
            if name is not None and (name not in fields or form or conversion):
                found = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
                raise ValueError(f"placeholder {{{found}}} is unknown; expected {expected}")
        return prompt

    return AfterValidator(check)


def describe_errors(error: ValidationError, model: type[BaseModel], values: Any) -> list[tuple[str, str]]:
    """Return each field that is wrong and what is wrong with it, with the value found.

    Args:
        error: the error of `model.model_validate(values)`.
        model: class of the settings; its fields are suggested for an unknown key.
        values: what was validated.
    """
    problems: dict[str, str] = {}
    for item in error.errors():
        keys = _keys_in(item["loc"], values)
        if item["type"] == "missing":
            keys = item["loc"]
        field, found = ".".join(_printable(str(key)) for key in keys), item.get("input")
        if item["type"] == "extra_forbidden":
            problem = f"unknown key; {suggest(str(keys[-1]), _fields_at(model, keys[:-1]))}"
        elif item["type"] == "missing":
            problem = "missing"
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            problem = f"expected a mapping of settings, found {_shorten(found)}"
        elif item["type"] == "value_error":
            problem = f"{item.get('ctx', {}).get('error')}, found {_shorten(found)}"
        else:
            problem = f"{item['msg'][0].lower() + item['msg'][1:]}, found {_shorten(found)}"
        problems.setdefault(field, problem)
    # A list whose items are all wrong is also reported as too short.
    return [(field, why) for field, why in problems.items() if not any(k.startswith(f"{field}.") for k in problems)]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:80])


def _shorten(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _keys_in(location: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    """Return the part of an error's location that exists in the values: pydantic appends names of types."""
    keys: list[int | str] = []
    part = values
    for key in location:
        if isinstance(part, str):
            break
        try:
            part = part[key]
        except (LookupError, TypeError):
            break
        keys.append(key)
    return tuple(keys) or location


def _fields_at(model: Any, keys: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the settings model at a location; none if there is no such model."""
    models = [part for part in _types_in(model) if isinstance(part, type) and issubclass(part, BaseModel)]
    if not models:
        return []
    if not keys:
        return sorted(name for part in models for name in part.model_fields)
    known = [part.model_fields[str(keys[0])].annotation for part in models if str(keys[0]) in part.model_fields]
    return _fields_at(known[0], keys[1:]) if known else _fields_at(model, keys[1:])
