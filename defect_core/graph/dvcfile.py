"""dvc.yaml, rendered from the stage table: one block per stage, one line per instance.

The file is written, never edited. `defectory sync` renders it again after params.yaml gained or lost a product,
generator or arm. If the packages are inside the project (this repository), a stage depends on its code files. Otherwise
it depends on their digests in `code.json`, which `sync` updates.
"""

import json
import os
from pathlib import Path
from typing import Any

from defect_core.data.files import write_json, write_text
from defect_core.errors import InputError
from defect_core.graph.code import code_digest, code_root
from defect_core.graph.instances import Instance, instances
from defect_core.graph.source_links import DVC_CONFIG, enable_git, link_sources
from defect_core.graph.table import STAGES, Stage
from defect_core.graph.yaml_text import emit_mapping, emit_text, escape_dvc
from defect_core.project.paths import Project

HEADER = """\
# Written by `defectory sync` from params.yaml and the stage table in defect_core/graph/table.py; do not edit.
# One block per stage, one line per product, generator or arm. `dvc repro` runs what is stale.
"""
CODE_FILE = "code.json"


def sync(project: Project) -> list[str]:
    """Bring dvc.yaml, code.json and the links to sources up to date, and tell DVC if the project is now in git.

    Returns:
        The names of the files that changed.
    """
    changed = [DVC_CONFIG] if enable_git(project) else []
    changed += [name for name in link_sources(project) if name not in changed]
    text = render(project)
    target = project.path("dvc.yaml")
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        write_text(target, text)
        changed.append("dvc.yaml")
    digests = code_digests(project)
    path = project.path(CODE_FILE)
    if digests is not None and _read_digests(path) != digests:
        write_json(path, digests)
        changed.append(CODE_FILE)
    return changed


def _read_digests(path: Path) -> Any:
    """Return the content of code.json; None if there is none, or a damaged one, which is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def code_digests(project: Project) -> dict[str, str] | None:
    """Return the content of code.json: digest of the code by instance; None if the packages are inside the project."""
    if _has_code_inside(project):
        return None
    digest_by_code: dict[tuple[str, ...], str] = {}  # Many instances have the same code.
    digests = {}
    for stage in STAGES:
        for instance in instances(stage, project.params):
            code = tuple(instance.code)
            digest_by_code[code] = digest_by_code.get(code) or code_digest(code)
            digests[instance.code_key] = digest_by_code[code]
    return digests


def render(project: Project) -> str:
    """Return the text of dvc.yaml for a project. Raises InputError if two instances have the same name."""
    if not project.params.products:
        return HEADER + "# no products yet: `defectory add-product NAME PATH` adds one\nstages: {}\n"
    lines = [HEADER + "stages:"]
    for stage in STAGES:
        lines += _render_stage(stage, list(instances(stage, project.params)), project)
    return "\n".join(lines + _render_plots(project)) + "\n"


def present_params(keys: tuple[str, ...], cells: list[Instance], raw_params: dict) -> list[str]:
    """Return the keys that params.yaml contains, because DVC refuses a missing one; a section stands for its part."""
    present = []
    for key in keys:
        if all(_contains(raw_params, key.format(**cell.fields)) for cell in cells):
            present.append(key)
        elif _contains(raw_params, key.split(".")[0]):
            present.append(key.split(".")[0])
    return present


def _render_stage(stage: Stage, cells: list[Instance], project: Project) -> list[str]:
    if not cells:
        return []
    stage = cells[0].stage  # Its inputs are those of this project.
    code = cells[0].code_templates if _has_code_inside(project) else []
    lines = [f"  # {stage.about}", f"  {stage.name}:"]
    indent = "    "
    if stage.grid:
        lines += ["    foreach:", *_render_items(stage, cells, code), "    do:"]
        indent = "      "
    options = "".join(f" --{axis} ${{item.{axis}}}" for axis in stage.grid)
    lines.append(f"{indent}cmd: defectory stage {stage.name}{options}")
    params = [_item(key) for key in present_params(stage.params, cells, project.raw_params)]
    if not code:
        field = "item.code_key" if _has_dot(cells) else "key"
        key = f"{stage.name}@${{{field}}}" if stage.grid else stage.name
        params.append(f'{CODE_FILE}: ["{key}"]')
    inside = [_path_inside(project, path) for path in code]
    lines += _block(indent, "deps", [_item(path) for path in (*stage.inputs, *inside)])
    lines += _block(indent, "params", params, quote=False)
    persist = ": {persist: true}" if stage.persist else ""
    outputs = [_quote(_item(path)) + persist for path in stage.outputs]
    lines += _block(indent, "outs", outputs, quote=False)
    if stage.metrics:
        lines.append(f"{indent}metrics:")
        options = "cache: false, persist: true" if stage.persist else "cache: false"
        lines += [f"{indent}- {_quote(_item(path))}: {{{options}}}" for path in stage.metrics]
    return lines


def _render_items(stage: Stage, cells: list[Instance], code: list[str]) -> list[str]:
    """Return one line per instance with the fields that the block of its stage uses."""
    templates = " ".join((*stage.inputs, *stage.outputs, *stage.metrics, *stage.params, *code))
    used = [name for name in cells[0].fields if name in stage.grid or f"{{{name}}}" in templates]
    by_key: dict[str, Instance] = {}
    lines = []
    for cell in cells:
        if cell.key in by_key:
            raise InputError(
                f"params.yaml: {cell.fields} and {by_key[cell.key].fields} are both named {cell.key!r}; rename one"
            )
        by_key[cell.key] = cell
        fields = {name: escape_dvc(cell.fields[name]) for name in used}
        if _has_dot(cells) and not code:
            fields["code_key"] = cell.key.replace(".", "~")
        lines.append(f"      {emit_text(cell.key)}: {emit_mapping(fields)}")
    return lines


def _render_plots(project: Project) -> list[str]:
    """Return the plots for `dvc plots show` and `dvc plots diff`: the pixel AP of every arm, one plot per product."""
    lines = ["", "plots:"]
    for product in project.params.products:
        lines += [f"- {emit_text(f'pixel AP of {product}')}:", "    template: scatter", "    x: seed", "    y:"]
        lines += [
            f"      {emit_text(f'metrics/segment/{product}/{arm}.json')}: pixel_ap" for arm in project.params.arms
        ]
    return lines


def _has_dot(cells: list[Instance]) -> bool:
    return any("." in cell.key for cell in cells)


def _contains(mapping: object, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(mapping, dict) or part not in mapping:
            return False
        mapping = mapping[part]
    return True


def _block(indent: str, name: str, entries: list[str], quote: bool = True) -> list[str]:
    if not entries:
        return []
    return [f"{indent}{name}:", *(f"{indent}- {_quote(entry) if quote else entry}" for entry in entries)]


def _item(template: str) -> str:
    return template.replace("{", "${item.")


def _quote(text: str) -> str:
    return text if all(c.isalnum() or c in "/._-${}" for c in text) and text[0].isalnum() else json.dumps(text)


def _has_code_inside(project: Project) -> bool:
    return code_root().is_relative_to(project.root)


def _path_inside(project: Project, relative: str) -> str:
    return (Path(os.path.relpath(code_root(), project.root)) / relative).as_posix().removeprefix("./")
