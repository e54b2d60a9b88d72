"""Every Python example of README and documentation runs, and every command in them exists."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from defect_core.cli.app import app
from defect_core.cli.reference import insert_reference

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def _blocks(page, language):
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run_in_the_order_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in _blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


def test_every_command_in_the_documentation_exists():
    commands = set(get_command(app).commands)
    named = set()
    for page in PAGES:
        for block in _blocks(page, ""):
            named |= set(re.findall(r"(?:^|&& )defectory ([a-z-]+)", block, re.MULTILINE))
    assert {"init", "run"} <= named <= commands


def test_the_reference_of_params_yaml_agrees_with_the_settings_models():
    text = (REPOSITORY / "docs/params.md").read_text(encoding="utf-8")
    assert insert_reference(text) == text, "run: python -m defect_core.cli.reference docs/params.md"


def test_relative_links_of_the_documentation_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
