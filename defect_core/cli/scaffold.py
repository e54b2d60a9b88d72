"""Creating a project, adding products to it, and requesting new samples."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from defect_core.data.files import atomic_path
from defect_core.data.records import GOOD, check_name, record_rows
from defect_core.errors import InputError
from defect_core.graph.dvcfile import sync
from defect_core.graph.local import check_known, child_environment
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
EMPTY_MASKS = ("error", "leave_out")
_DVC_SETTINGS = "[core]\n    analytics = false\n    check_update = false\n"


class AddedProduct(NamedTuple):
    """What `add_product` read.

    Attributes:
        normals: number of normal images.
        defects: number of images by defect type.
        notes: what was left out or found twice, one line each.
    """

    normals: int
    defects: dict[str, int]
    notes: list[str]


def init_project(folder: Path, preset: str = "laptop") -> Project:
    """Create an empty project with the settings of a preset.

    Raises:
        InputError: the folder exists and is not empty, or the preset is unknown.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    if folder.exists() and (not folder.is_dir() or any(p.name not in (".git",) for p in folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; expected a new or empty one")
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder)
    _init_dvc(project)
    for template, target in {f"presets/{preset}.yaml": PARAMS_FILE, **TEMPLATES}.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (files("defect_core.cli") / "templates" / template).read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
    sync(project)
    return project


def add_product(
    project: Project, name: str, path: str, layout: str, options: Sequence[str], empty_masks: str | None
) -> AddedProduct:
    """Check the images of a product as `ingest` will, then add it to params.yaml and dvc.yaml.

    Args:
        project: the project.
        name: name of the product.
        path: a folder, relative to the current one, a URL that fsspec reads, or `demo`.
        layout: `auto`, `demo` or one of the layouts.
        options: options of the layout as `KEY=VALUE`, VALUE as JSON or else as text.
        empty_masks: `error`, `leave_out` or None for the default.

    Raises:
        InputError: a check failed; the project is unchanged.
    """
    from defect_core.data.layouts.ingest import ingest_source
    from defect_core.data.layouts.remote import open_source

    check_name(name, "product")
    params = project.params
    if name in params.products:
        raise InputError(f"product {name!r} is already in {PARAMS_FILE}; choose another name or edit its source there")
    source = _source_entry(project, path, layout, options, empty_masks)
    project.state.mkdir(exist_ok=True)
    relative = source.get("path")
    local = None if relative is None else Path(os.path.normpath(project.root / relative))
    with (
        tempfile.TemporaryDirectory(dir=project.state) as temporary,
        open_source(relative, local, project.state) as folder,
    ):
        summary = ingest_source(
            folder,
            name,
            Path(temporary) / name,
            layout=source["layout"],
            options=source.get("options", {}),
            empty_masks=source.get("empty_masks", "error"),
            min_per_defect=params.ingest.min_per_defect,
            seed=params.seed,
        )
        counts = Counter(record.defect for record in record_rows(Path(temporary) / name / "records.parquet"))
    with edited_params(project) as content:
        content["products"] = [*(content.get("products") or []), name]
        content["sources"] = {**(content.get("sources") or {}), name: source}
    project = Project(project.root)
    record_source(project, name)
    sync(project)
    return AddedProduct(counts.pop(GOOD, 0), dict(counts), _notes(summary))


def request_regeneration(project: Project, products: Sequence[str] = (), generators: Sequence[str] = ()) -> list[str]:
    """Request new samples: raise the counter in `regenerations` of params.yaml, from which their seed is derived.

    Args:
        project: the project.
        products: which products; all if none is named.
        generators: which generators; all if none is named.

    Returns:
        Addresses of the instances of `synthesize` that are now stale.

    Raises:
        InputError: an unknown product or generator.
    """
    params = project.params
    check_known(params, products, generators)
    addresses = []
    with edited_params(project) as content:
        regenerations = content.setdefault("regenerations", {})
        for product in products or params.products:
            by_generator = regenerations.setdefault(product, {})
            for generator in generators or params.generators:
                by_generator[generator] = params.regeneration(product, generator) + 1
                addresses.append(f"synthesize@{product}-{generator}")
    sync(Project(project.root))
    return addresses


@contextmanager
def edited_params(project: Project) -> Iterator[Any]:
    """Yield the content of params.yaml to change in place; it is written back with its comments, after a check.

    Raises:
        InputError: the changed settings are invalid; the file is unchanged.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    path = project.path(PARAMS_FILE)
    content = yaml.load(path.read_text(encoding="utf-8")) or {}
    yield content
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        load_params(temporary)


def _source_entry(
    project: Project, path: str, layout: str, options: Sequence[str], empty_masks: str | None
) -> dict[str, Any]:
    """Return the entry of `sources` in params.yaml. Raises InputError for an invalid option."""
    from defect_core.data.layouts.remote import is_url

    entry: dict[str, Any] = {"layout": "demo"}
    if path != "demo" and layout != "demo":
        relative = path if is_url(path) else Path(os.path.relpath(Path(path).resolve(), project.root)).as_posix()
        entry = {"path": relative, "layout": layout}
    if options:
        entry["options"] = dict(_parse_option(option) for option in options)
    if empty_masks:
        if empty_masks not in EMPTY_MASKS:
            raise InputError(f"--empty-masks: expected {' or '.join(EMPTY_MASKS)}, found {empty_masks!r}")
        entry["empty_masks"] = empty_masks
    return entry


def _parse_option(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--option {option!r}: expected KEY=VALUE")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def _notes(summary: dict[str, Any]) -> list[str]:
    left_out = [f"left out: {entry['image']} ({entry['reason']})" for entry in summary["left_out"]]
    duplicates = [
        f"found twice, kept once: {entry['image']} (as {entry['same_as']})" for entry in summary["duplicates"]
    ]
    return left_out + duplicates


def _init_dvc(project: Project) -> None:
    """Run `dvc init`, in the git repository that contains the project, or without git."""
    toplevel = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=project.root, capture_output=True, text=True, check=False
    )
    flags = ["--no-scm"]
    if toplevel.returncode == 0:
        flags = [] if Path(toplevel.stdout.strip()).resolve() == project.root else ["--subdir"]
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
    text = config.read_text()
    config.write_text(text.replace("[core]\n", _DVC_SETTINGS, 1) if "[core]" in text else text + _DVC_SETTINGS)
