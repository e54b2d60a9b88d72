"""The tables of options in docs/data.md, rendered from the models."""

from pydantic import BaseModel

from defect_core.data.annotations import AnnotationOptions
from defect_core.data.layouts.options import LayoutOptions

BEGIN = "<!-- rendered from the options: python -m defect_core.data.layouts.reference docs/data.md -->"
END = "<!-- end of the options -->"


def render_option_tables() -> str:
    """Return a Markdown table of the options of layouts, and one of the options of annotation files."""
    layouts = _render(LayoutOptions, "", ("key", "example", "layouts", "meaning"))
    annotations = _render(AnnotationOptions, "annotations.", ("key", "example", "meaning"))
    return f"{layouts}\n\n### Options of annotation files\n\n{annotations}"


def insert_option_table(text: str) -> str:
    """Return a document with the tables between its two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render_option_tables()}\n\n{END}{after}"


def _render(model: type[BaseModel], prefix: str, columns: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for key, field in model.model_fields.items():
        group = prefix.rstrip(".")
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        example = f"{key}: {extra.get('example')}"
        example = f"{group}: {{{example}}}" if group else example
        cells = {
            "key": f"`{prefix}{key}`",
            "example": f"`{example}`",
            "layouts": str(extra.get("layouts", "all")),
            "meaning": meaning,
        }
        lines.append("| " + " | ".join(cells[column] for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys
    from pathlib import Path

    path = Path(sys.argv[1])
    path.write_text(insert_option_table(path.read_text(encoding="utf-8")), encoding="utf-8")
