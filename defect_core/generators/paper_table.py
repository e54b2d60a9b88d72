"""The table in a method's README that compares its components with the paper and its public code.

A method lists its components as `COMPONENTS` in `paper.py` beside its `config.py`. Values that are settings are read
from the variants, so the table cannot say anything else than the code does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from defect_core.generators.registry import BUILT_IN
from defect_core.generators.variants import VariantConfig

BEGIN = "<!-- rendered from paper.py: python -m defect_core.generators.paper_table -->"
END = "<!-- end of the components -->"
COLUMNS = ("component", "equation", "our module", "paper", "official", "embedded", "test")
VARIANT_COLUMNS = ("paper", "official", "embedded")


@dataclass(frozen=True)
class Component:
    """A component of a method, and how paper, public code and this project's defaults have it.

    The cells `paper`, `official` and `embedded` contain the values of `settings` in that variant, then the text given
    here. A value that no setting can express is given as text, which says so.

    Attributes:
        name: what the component is called in the paper.
        equation: where the paper defines it, such as `eq. 5`, `sec. 3.2` or `app. B`; empty if the paper does not.
        module: dotted path below `defect_core.generators`, of a module, class or function.
        paper: the paper's form, in a few words.
        official: the public code's form; empty if there is no public code.
        embedded: the default's form.
        test: `tests/...py::test_name`, a test that fails if the component is broken.
        settings: keys of the settings, such as `steps` or `mask_model.steps`.
    """

    name: str
    equation: str
    module: str
    paper: str = ""
    official: str = ""
    embedded: str = ""
    test: str = ""
    settings: tuple[str, ...] = ()


def methods_with_components() -> dict[str, str]:
    """Return the methods that list components: name -> package."""
    return {name: package for name, package in BUILT_IN.items() if find_spec(f"{package}.paper") is not None}


def components_of(package: str) -> Sequence[Component]:
    """Return the components that a method's package lists."""
    return import_module(f"{package}.paper").COMPONENTS


def render_table(components: Sequence[Component], config_class: type[VariantConfig]) -> str:
    """Return the components as a Markdown table.

    Args:
        components: the rows.
        config_class: settings class of the method, whose variants give the values.
    """
    settings = {name: config_class.model_validate({"variant": name}) for name in config_class.variant_names()}
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for component in components:
        cells = [component.name, component.equation or "–", f"`{component.module}`"]
        for column in VARIANT_COLUMNS:
            cells.append(_cell(component, column, settings.get(column)) or "–")
        cells.append(f"`{component.test.removeprefix('tests/')}`" if component.test else "–")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def insert_table(text: str, table: str) -> str:
    """Return a README with the table between its two markers replaced; without markers, a section at its end."""
    if BEGIN not in text:
        text += f"\n## Components\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def rendered_readme(package: str) -> tuple[Path, str]:
    """Return the path of a method's README, and its text with the current table."""
    module = import_module(package)
    readme = Path(str(module.__file__)).parent / "README.md"
    config_class = import_module(f"{package}.config").CONFIG
    return readme, insert_table(readme.read_text(encoding="utf-8"), render_table(components_of(package), config_class))


def setting_value(settings: BaseModel, key: str) -> Any:
    """Return the value of a key such as `mask_model.steps`.

    Raises:
        AttributeError: there is no such key.
    """
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _cell(component: Component, column: str, settings: VariantConfig | None) -> str:
    values = [] if settings is None else [_format(setting_value(settings, key)) for key in component.settings]
    note = getattr(component, column)
    text = ", ".join(values)
    return f"{text} ({note})" if text and note else text or note


def _format(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        if any(isinstance(each, str) for each in value):
            return f"{len(value)} texts"
        return "[" + ", ".join(_format(each) for each in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{value}`" if isinstance(value, str) else str(value)


if __name__ == "__main__":
    for package in methods_with_components().values():
        path, text = rendered_readme(package)
        path.write_text(text, encoding="utf-8")
