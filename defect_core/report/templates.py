"""Rendering of the HTML templates in this package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_page(path: Path, template: str, values: Mapping[str, object], **filters: Callable[..., Any]) -> None:
    """Render a template of this package into an HTML file; equal values give equal bytes.

    Args:
        path: file to write.
        template: file name in this package.
        values: variables of the template.
        **filters: additional filters of the template, by name.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("defect_core", "report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    path.write_text(environment.get_template(template).render(values), encoding="utf-8")
