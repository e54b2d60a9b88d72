"""Variants fill the keys that are not given, and the tables of the READMEs say what the code does."""

import ast
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import pytest

from defect_core.errors import InputError
from defect_core.generators.paper_table import (
    Component,
    components_of,
    insert_table,
    methods_with_components,
    render_table,
    rendered_readme,
    setting_value,
)
from defect_core.generators.registry import GeneratorConfig, generator_config
from defect_core.generators.variants import VariantConfig

ROOT = Path(__file__).resolve().parents[2]


class Inner(GeneratorConfig):
    width: int = 1
    depth: int = 1


class Toy(VariantConfig):
    VARIANTS: ClassVar = {"paper": {"steps": 9, "inner": {"width": 5}, "rate": 1e-5}}
    steps: int = 3
    rate: float = 0.1
    inner: Inner = Inner()


def test_a_variant_gives_the_keys_that_are_not_set():
    assert (Toy().steps, Toy().inner.width) == (3, 1)
    paper = Toy.model_validate({"variant": "paper", "steps": 4, "inner": {"depth": 2}})
    assert (paper.steps, paper.rate, paper.inner.width, paper.inner.depth) == (4, 1e-5, 5, 2)
    assert Toy.model_validate(paper.model_dump(mode="json")) == paper  # as in a saved generator


@pytest.mark.parametrize("variant", ["official", "best", 3, None])
def test_an_unknown_variant_names_those_that_exist(variant):
    with pytest.raises(InputError, match=r"params.yaml: finetune.cadiff.variant: .* the variants embedded") as caught:
        generator_config("cadiff", {"variant": variant}, where="params.yaml: finetune")
    assert "\n" not in str(caught.value) and f"found {variant!r}" in str(caught.value)


def test_a_cell_has_the_value_of_the_setting_and_the_text():
    components = [
        Component("loss", "eq. 5", "toy.loss", "sum", "mean", settings=("rate", "inner.width")),
        Component("seed", "", "toy", paper="a|b", test="tests/a.py::test_b"),
    ]
    rows = render_table(components, Toy).splitlines()
    assert rows[2] == "| loss | eq. 5 | `toy.loss` | 1e-05, 5 (sum) | mean | 0.1, 1 | – |"
    assert rows[3] == "| seed | – | `toy` | a\\|b | – | – | `a.py::test_b` |"
    text = insert_table("# toy\n", "table")
    assert insert_table(text, "table") == text and text.count("table\n") == 1


@pytest.mark.parametrize("package", methods_with_components().values())
def test_the_readme_has_the_current_table(package):
    path, text = rendered_readme(package)
    assert path.read_text(encoding="utf-8") == text, "run python -m defect_core.generators.paper_table"


@pytest.mark.parametrize("package", methods_with_components().values())
def test_every_named_module_and_test_exists(package):
    for component in components_of(package):
        _resolve(f"defect_core.generators.{component.module}")
        file, _, name = component.test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, component.test


@pytest.mark.parametrize("package", methods_with_components().values())
def test_every_value_of_a_variant_is_in_the_table(package):
    config_class = import_module(f"{package}.config").CONFIG
    listed = {key for component in components_of(package) for key in component.settings}
    for values in config_class.VARIANTS.values():
        assert set(_flatten(values)) <= listed


@pytest.mark.parametrize(("name", "package"), methods_with_components().items())
def test_the_values_are_those_of_the_papers(name, package):
    """`paper_values_<method>.py` was written from the paper and the public code, not from the settings."""
    expected = import_module(f"paper_values_{name.replace('-', '_')}").VALUES
    config_class = import_module(f"{package}.config").CONFIG
    assert set(expected) == set(config_class.VARIANTS)
    for variant, values in expected.items():
        assert set(_flatten(config_class.VARIANTS[variant])) <= set(values)
        settings = config_class.model_validate({"variant": variant})
        assert {key: setting_value(settings, key) for key in values} == values


def _flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _resolve(path):
    """Import a module, class or function by its dotted path."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)
