"""The reference of params.yaml, rendered from the settings models."""

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from defect_core.project.params import Params

BEGIN = "<!-- rendered from the settings models: python -m defect_core.cli.reference docs/params.md -->"
END = "<!-- end -->"

_PREFIXES = {
    "sources": "sources.<product>.",
    "placement": "placement.<product>.<defect>.",
    "zero_shot": "zero_shot[].",
}


def render_params_reference() -> str:
    """Return one Markdown table per section of params.yaml: key, default, meaning."""
    tables = [_render_table(Params, "", "Top level")]
    for name, field in Params.model_fields.items():
        model = _settings_model(field.annotation)
        if model is not None:
            prefix = _PREFIXES.get(name, f"{name}.")
            optional = field.default is None
            about = " ".join((model.__doc__ or "").split())
            tables.append(_render_table(model, prefix, name, about + (" Optional section." if optional else "")))
    return "\n\n".join(tables)


def insert_reference(text: str) -> str:
    """Return a document with the tables between its two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render_params_reference()}\n\n{END}{after}"


def _render_table(model: type[BaseModel], prefix: str, title: str, about: str = "") -> str:
    lines = [f"### {title}" if title == "Top level" else f"### `{title}`", ""]
    if about:
        lines += [about, ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if prefix == "" and _settings_model(field.annotation) is not None:
            continue
        key = field.alias or name
        lines.append(f"| `{prefix}{key}` | {_format_default(field)} | {_describe(field)} |")
    return "\n".join(lines)


def _describe(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
    return f"{text} One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else text


def _format_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`"


def _settings_model(annotation: Any) -> type[BaseModel] | None:
    """Return the settings model inside an annotation such as `Model | None` or `dict[str, Model]`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        if candidate is not annotation and (model := _settings_model(candidate)) is not None:
            return model
    return None


if __name__ == "__main__":
    import sys
    from pathlib import Path

    path = Path(sys.argv[1])
    path.write_text(insert_reference(path.read_text(encoding="utf-8")), encoding="utf-8")
