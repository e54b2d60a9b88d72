"""Laying down a project, adding products to it, and examining the installation."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from defect_core.data.records import check_name
from defect_core.errors import InputError
from defect_core.graph import dvcfile
from defect_core.project.params import load_params
from defect_core.project.paths import PARAMS_FILE, Project
from defect_core.project.sources import record_source

PRESETS = ("demo", "laptop", "full")
TEMPLATES = {
    "workspace.yaml": "workspace.yaml",
    "data-README.md": "data/README.md",
    "dvcignore": ".dvcignore",
    "gitignore": ".gitignore",
    "metrics-README.md": "metrics/README.md",
}


def init_project(folder: Path, preset: str = "laptop") -> Project:
    """Lay down an empty project with the settings of a preset.

    Raises:
        InputError: the folder exists and is not empty, or an unknown preset.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    if folder.exists() and (not folder.is_dir() or any(p.name not in (".git",) for p in folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; expected a new or empty one")
    folder.mkdir(parents=True, exist_ok=True)
    for template, target in {f"presets/{preset}.yaml": PARAMS_FILE, **TEMPLATES}.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            (files("defect_core.cli") / "templates" / template).read_text(encoding="utf-8"), encoding="utf-8"
        )
    project = Project(folder)
    _init_dvc(project)
    dvcfile.sync(project)
    return project


def add_product(
    project: Project, name: str, path: str, layout: str, options: list[str], empty_masks: str | None
) -> dict[str, Any]:
    """Check a product's images as `ingest` will, then add it to params.yaml and dvc.yaml.

    Args:
        path: a folder, relative to the current one, a URL that fsspec reads, or `demo`.
        layout: `auto`, `demo` or one of the layouts.
        options: `KEY=VALUE` each, VALUE as JSON or else as text.
        empty_masks: `error`, `leave_out` or None for the default.

    Returns:
        `good`: number of good images; `defects`: number per defect; `notes`: what was left out.
    """
    from defect_core.data.layouts import ingest, is_url, opened
    from defect_core.data.records import read_records

    check_name(name, "product")
    params = project.params
    if name in params.products:
        raise InputError(f"product {name!r} is already in {PARAMS_FILE}; choose another name or edit its source there")
    source: dict[str, Any] = {"layout": "demo"}
    if path != "demo" and layout != "demo":
        here = path if is_url(path) else Path(os.path.relpath(Path(path).resolve(), project.root)).as_posix()
        source = {"path": here, "layout": layout}
    if options:
        source["options"] = dict(_parse_option(option) for option in options)
    if empty_masks:
        if empty_masks not in ("error", "leave_out"):
            raise InputError(f"--empty-masks: expected error or leave_out, found {empty_masks!r}")
        source["empty_masks"] = empty_masks
    project.state.mkdir(exist_ok=True)
    given = source.get("path")
    local = None if given is None else Path(os.path.normpath(project.root / given))
    with (
        tempfile.TemporaryDirectory(dir=project.state) as scratch,
        opened(given, local, project.state) as folder,
    ):
        found = ingest(
            folder,
            name,
            Path(scratch) / name,
            layout=source["layout"],
            options=source.get("options", {}),
            empty_masks=empty_masks or "error",
            min_per_defect=params.ingest.min_per_defect,
            seed=params.seed,
        )
        records = read_records(Path(scratch) / name / "records.parquet")
    counts: dict[str, int] = {}
    for record in records:
        counts[record.defect] = counts.get(record.defect, 0) + 1
    _write_source(project, name, source)
    project = Project(project.root)
    record_source(project, name)
    dvcfile.sync(project)
    return {"good": counts.pop("good", 0), "defects": counts, "notes": _notes(found)}


@contextmanager
def edited_params(project: Project) -> Iterator[Any]:
    """The content of params.yaml to change in place; written with its comments kept, and checked before it replaces
    the old file.

    Raises:
        InputError: the changed settings are not valid; the old file stays.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    path = project.path(PARAMS_FILE)
    content = yaml.load(path.read_text(encoding="utf-8")) or {}
    yield content
    fresh = path.with_name(PARAMS_FILE + ".new")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        load_params(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def request_regeneration(project: Project, products: Sequence[str] = (), generators: Sequence[str] = ()) -> list[str]:
    """Ask for fresh samples: raise the number in `draws` of params.yaml, from which their seed follows.

    Args:
        products, generators: which; all where none is named.

    Returns:
        Addresses of the instances of `synthesize` that are stale by that.

    Raises:
        InputError: an unknown product or generator.
    """
    params = project.params
    for given, known, what in ((products, params.products, "product"), (generators, params.generators, "generator")):
        for name in given:
            if name not in known:
                raise InputError(f"{what} {name!r} is not in params.yaml; expected one of {', '.join(known)}")
    addresses = []
    with edited_params(project) as content:
        draws = content.setdefault("draws", {})
        for product in products or params.products:
            own = draws.setdefault(product, {})
            for generator in generators or params.generators:
                own[generator] = params.draw(product, generator) + 1
                addresses.append(f"synthesize@{product}-{generator}")
    dvcfile.sync(Project(project.root))
    return addresses


def examine() -> dict[str, str]:
    """What is installed and at hand, as text per fact; absence is a fact, not an error."""
    from importlib.metadata import version

    facts = {"python": sys.version.split()[0]}
    for package in ("defectory", "torch", "diffusers", "dagster", "dvc"):
        facts[package] = version(package)
    import torch

    facts["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU is used"
    weights = os.environ.get("DEFECTORY_WEIGHTS")
    facts["DEFECTORY_WEIGHTS"] = "not set" if not weights else "found" if Path(weights).is_dir() else "not a folder"
    try:
        project = Project.find()
        params = project.params
        facts["project"] = f"{len(params.products)} products, {len(params.generators)} generators"
        stale = dvcfile.render(project) != project.path("dvc.yaml").read_text(encoding="utf-8")
        facts["dvc.yaml"] = "out of date; run `defectory sync`" if stale else "agrees with the stage table"
    except InputError as error:
        facts["project"] = str(error)
    return facts


def _init_dvc(project: Project) -> None:
    inside = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=project.root, capture_output=True, text=True, check=False
    )
    flags = ["--no-scm"]
    if inside.returncode == 0:
        flags = [] if Path(inside.stdout.strip()).resolve() == project.root else ["--subdir"]
    from defect_core.graph.local import child_environment

    done = subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--quiet", *flags],
        cwd=project.root,
        env=child_environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dvc init failed: {done.stderr.strip()}")
    config = project.path(".dvc/config")
    config.write_text(
        config.read_text() + "[core]\n    analytics = false\n    check_update = false\n"
        if "[core]" not in config.read_text()
        else config.read_text().replace("[core]\n", "[core]\n    analytics = false\n    check_update = false\n", 1)
    )
    shutil.copyfile(files("defect_core.cli") / "templates" / "dvcignore", project.path(".dvcignore"))


def _parse_option(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--option {option!r}: expected KEY=VALUE")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def _write_source(project: Project, name: str, source: dict[str, Any]) -> None:
    """Add the product to params.yaml."""
    with edited_params(project) as content:
        content["products"] = [*(content.get("products") or []), name]
        sources = content.get("sources") or {}
        sources[name] = source
        content["sources"] = sources


def _notes(found: dict[str, Any]) -> list[str]:
    left_out = [f"left out: {entry['image']} ({entry['reason']})" for entry in found["left_out"]]
    return left_out + [
        f"seen twice, kept once: {entry['image']} (as {entry['same_as']})" for entry in found["duplicates"]
    ]
