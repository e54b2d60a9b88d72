"""A project: the folder with params.yaml that the data, the DVC cache, the metrics and the reports belong to."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from defect_core.errors import InputError
from defect_core.project.params import Params, load_params

PARAMS_FILE = "params.yaml"
STATE_DIR = ".defectory"


class Project:
    """Paths and parameters of one project folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @classmethod
    def find(cls, start: Path | None = None) -> "Project":
        """The project that `start` (default: the current folder) lies in. Raises InputError when there is none."""
        given = os.environ.get("DEFECTORY_PROJECT")
        here = (start or Path(given or ".")).resolve()
        for folder in (here, *here.parents):
            if (folder / PARAMS_FILE).is_file():
                return cls(folder)
        raise InputError(f"{PARAMS_FILE}: not found here or above; `defectory init DIR` lays down a project")

    @cached_property
    def params(self) -> Params:
        return load_params(self.root / PARAMS_FILE)

    @cached_property
    def given(self) -> dict[str, Any]:
        """params.yaml as it stands in the file, without defaults; what DVC sees."""
        self.params  # noqa: B018 - says what is wrong with the file before anything reads it raw
        return yaml.safe_load((self.root / PARAMS_FILE).read_text(encoding="utf-8")) or {}

    @property
    def state(self) -> Path:
        """Untracked state of this machine: unfinished work, timings."""
        return self.root / STATE_DIR

    def path(self, relative: str) -> Path:
        return self.root / relative

    def source_path(self, product: str) -> Path | None:
        """The folder where a product's real images lie; None for the built-in demo products and for a URL."""
        source = self.params.sources[product]
        return None if source.path is None or "://" in source.path else Path(os.path.normpath(self.root / source.path))

    @contextmanager
    def building(self, relative: str, key: dict[str, Any]) -> Iterator[Path]:
        """A work folder that becomes the output `relative` when the block ends well.

        A folder left by a killed run is handed out again, so that work can go on, but only under the same `key`
        (settings and digests of inputs); other leftovers of this output are removed.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        parent = self.state / "work" / relative.replace("/", "~")
        work = parent / digest
        if parent.is_dir():
            for other in parent.iterdir():
                if other != work:
                    shutil.rmtree(other)
        work.mkdir(parents=True, exist_ok=True)
        yield work
        target = self.path(relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        shutil.move(work, target)
        shutil.rmtree(parent, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
