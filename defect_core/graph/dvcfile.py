"""dvc.yaml as the Stage table says it: one block per stage, one line per instance.

Written, never edited: `defectory sync` renders it again after params.yaml gained or lost a product, generator or
arm, and a test holds the two against each other. Where the packages lie inside the project (this repository), a
stage depends on its code files; elsewhere on their digests in `code.json`, which `sync` refreshes.
"""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from defect_core.errors import InputError
from defect_core.graph.instances import Instance, code_root, instances
from defect_core.graph.table import STAGES, Stage
from defect_core.project.paths import Project, write_json

HEADER = """\
# Written by `defectory sync` from params.yaml and the stage table in defect_core/graph/table.py; do not edit.
# One block per stage, one line per product, generator or arm it runs for. `dvc repro` runs what is stale.
"""
CODE_FILE = "code.json"
DVC_CONFIG = ".dvc/config"


def sync(project: Project) -> list[str]:
    """Bring dvc.yaml (and code.json) up to date; a project that has come to lie in git since `init` lets DVC know it.

    Returns:
        The names of the files that changed.
    """
    changed = [DVC_CONFIG] if _notice_git(project) else []
    text = render(project)
    target = project.path("dvc.yaml")
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        fresh = target.with_name("dvc.yaml.new")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, target)
        changed.append("dvc.yaml")
    if not _code_inside(project):
        known: dict[tuple[str, ...], str] = {}  # instances that share their code share its digest
        digests = {}
        for stage in STAGES:
            for instance in instances(stage, project.params):
                code = tuple(instance.code)
                known[code] = known.get(code) or code_digest(instance)
                digests[instance.address] = known[code]
        path = project.path(CODE_FILE)
        if not path.is_file() or json.loads(path.read_text()) != digests:
            write_json(path, digests)
            changed.append(CODE_FILE)
    return changed


def render(project: Project) -> str:
    """The text of dvc.yaml for a project."""
    if not project.params.products:
        return HEADER + "# no products yet: `defectory add-product NAME PATH` adds one\nstages: {}\n"
    lines = [HEADER + "stages:"]
    for stage in STAGES:
        lines += _render_stage(stage, list(instances(stage, project.params)), project)
    return "\n".join(lines + _render_plots(project)) + "\n"


def code_digest(instance: Instance) -> str:
    """sha256 over the names and bytes of the instance's code; also the code version of its Dagster asset."""
    digest = hashlib.sha256()
    for relative in sorted(instance.code):
        path = code_root() / relative
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".json", ".html", ".css", ".safetensors"):
                digest.update(file.relative_to(code_root()).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _render_stage(stage: Stage, cells: list[Instance], project: Project) -> list[str]:
    if not cells:
        return []
    stage = cells[0].stage  # its inputs are those of this project
    lines = [f"  # {stage.about}", f"  {stage.name}:"]
    indent = "    "
    if stage.grid:
        seen: dict[str, Instance] = {}
        templates = " ".join((*stage.inputs, *stage.outputs, *stage.metrics, *stage.params))
        templates += " ".join(stage.code) if _code_inside(project) else ""
        used = [name for name in cells[0].fields if name in stage.grid or f"{{{name}}}" in templates]
        lines.append("    foreach:")
        for cell in cells:
            if cell.key in seen:
                raise InputError(
                    f"params.yaml: {cell.fields} and {seen[cell.key].fields} are both named {cell.key!r}; rename one"
                )
            seen[cell.key] = cell
            fields = ", ".join(f"{name}: {_quote(cell.fields[name])}" for name in used)
            lines.append(f"      {cell.key}: {{{fields}}}")
        lines.append("    do:")
        indent = "      "
    options = "".join(f" --{axis} ${{item.{axis}}}" for axis in stage.grid)
    lines.append(f"{indent}cmd: defectory stage {stage.name}{options}")
    params = [_item(key) for key in _present(stage.params, cells, project.given)]
    if _code_inside(project):
        code = [_inside(project, path) for path in stage.code]
    else:
        code = []
        address = f"{stage.name}@${{key}}" if stage.grid else stage.name
        params.append(f'{CODE_FILE}: ["{address}"]')
    lines += _block(indent, "deps", [_item(path) for path in (*stage.inputs, *code)])
    lines += _block(indent, "params", params, quote=False)
    persist = ": {persist: true}" if stage.persist else ""
    outputs = [_quote(_item(path)) + persist for path in stage.outputs]
    lines += _block(indent, "outs", outputs, quote=False)
    if stage.metrics:
        lines.append(f"{indent}metrics:")
        options = "cache: false, persist: true" if stage.persist else "cache: false"
        lines += [f"{indent}- {_quote(_item(path))}: {{{options}}}" for path in stage.metrics]
    return lines


def _render_plots(project: Project) -> list[str]:
    """What `dvc plots show` and `dvc plots diff` draw: the pixel AP of every arm, a picture for each product."""
    lines = ["", "plots:"]
    for product in project.params.products:
        lines += [f"- {_quote(f'pixel AP of {product}')}:", "    template: scatter", "    x: seed", "    y:"]
        lines += [f"      {_quote(f'metrics/segment/{product}/{arm}.json')}: pixel_ap" for arm in project.params.arms]
    return lines


def _present(keys: tuple[str, ...], cells: list[Instance], given: dict) -> list[str]:
    """The keys that params.yaml really holds, for DVC refuses a missing one; a section stands in for its part."""
    kept = []
    for key in keys:
        if all(_holds(given, key.format(**cell.fields)) for cell in cells):
            kept.append(key)
        elif _holds(given, key.split(".")[0]):
            kept.append(key.split(".")[0])
    return kept


def _holds(given: dict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(given, dict) or part not in given:
            return False
        given = given[part]
    return True


def _block(indent: str, name: str, entries: list[str], quote: bool = True) -> list[str]:
    if not entries:
        return []
    return [f"{indent}{name}:", *(f"{indent}- {_quote(entry) if quote else entry}" for entry in entries)]


def _item(template: str) -> str:
    return template.replace("{", "${item.")


def _quote(text: str) -> str:
    return text if all(c.isalnum() or c in "/._-${}" for c in text) and text[0].isalnum() else json.dumps(text)


def _notice_git(project: Project) -> bool:
    """Take back `no_scm` if the project lies in git: with it DVC knows neither experiments nor revisions."""
    path = project.path(DVC_CONFIG)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = re.sub(r"(?im)^\s*no_scm\s*=\s*true\s*\n", "", text)
    if kept == text:
        return False
    asked = ["git", "rev-parse", "--is-inside-work-tree"]
    try:
        if subprocess.run(asked, cwd=project.root, capture_output=True, check=False).returncode:
            return False
    except FileNotFoundError:
        return False
    path.write_text(kept, encoding="utf-8")
    return True


def _code_inside(project: Project) -> bool:
    return code_root().is_relative_to(project.root)


def _inside(project: Project, relative: str) -> str:
    return (Path(os.path.relpath(code_root(), project.root)) / relative).as_posix().removeprefix("./")
