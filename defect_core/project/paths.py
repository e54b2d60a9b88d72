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

from defect_core.data.config import SOURCE_REMOTE, is_outside
from defect_core.errors import InputError
from defect_core.project.params import Params, load_params
from defect_core.project.params_file import read_params_file

PARAMS_FILE = "params.yaml"
STATE_DIR = ".defectory"


_EXPERIMENTS = (".dvc", "tmp", "exps")  # where DVC creates temporary workspaces


def original_root(root: Path) -> Path:
    """Return the folder of the project of which `root` is a temporary workspace of DVC; else `root` itself.

    `dvc exp run --temp` and `dvc queue` run in a copy below `.dvc/tmp/exps` of the project.
    """
    parts = root.parts
    for index in range(len(parts) - len(_EXPERIMENTS)):
        if parts[index : index + len(_EXPERIMENTS)] == _EXPERIMENTS:
            return Path(*parts[:index])
    return root


def synthetic_folder(product: str, generator: str) -> str:
    """Return where a synthetic set is stored, relative to the project."""
    return f"data/synthetic/{product}/{generator}"


class Project:
    """Paths and parameters of one project folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @classmethod
    def find(cls, start: Path | None = None) -> "Project":
        """Return the project that contains `start`.

        Args:
            start: a folder; by default the one that DEFECTORY_PROJECT names, else the current folder.

        Raises:
            InputError: neither the folder nor one above it has a params.yaml.
        """
        here = (start or Path(os.environ.get("DEFECTORY_PROJECT") or ".")).resolve()
        for folder in (here, *here.parents):
            if (folder / PARAMS_FILE).is_file():
                return cls(folder)
        raise InputError(f"{PARAMS_FILE}: not found in {here} or above; `defectory init DIR` creates a project")

    @cached_property
    def params(self) -> Params:
        """The checked content of params.yaml, with defaults. Raises InputError for an invalid file."""
        return load_params(self.root / PARAMS_FILE)

    @cached_property
    def raw_params(self) -> dict[str, Any]:
        """The content of params.yaml without defaults, as DVC reads it. Raises InputError for an invalid file."""
        _ = self.params  # Reports errors of the file before it is read unchecked.
        return read_params_file(self.root / PARAMS_FILE)

    @property
    def state(self) -> Path:
        """Untracked state of this machine: unfinished work, checkpoints, costs."""
        return self.root / STATE_DIR

    def path(self, relative: str) -> Path:
        """Return a path of the project from one relative to its root, or the folder behind a link to a source."""
        _, is_link, product = relative.partition(f"remote://{SOURCE_REMOTE}/")
        if is_link:
            return self.source_path(product) or self.root
        return self.root / relative

    def source_path(self, product: str) -> Path | None:
        """Return the folder with the real images of a product; None for a demo product and for a URL."""
        path = self.params.sources[product].path
        if path is None or "://" in path:
            return None
        return Path(os.path.normpath((original_root(self.root) if is_outside(path) else self.root) / path))

    def checkpoints(self, work: Path) -> Path:
        """Return the folder for checkpoints of the work in a folder that `building` yielded."""
        return self.state / "checkpoints" / work.parent.name / work.name

    @contextmanager
    def building(self, relative: str, key: dict[str, Any]) -> Iterator[Path]:
        """Yield a work folder that becomes the output `relative` when the block ends without an error.

        The work folder of an interrupted run is yielded again under the same key, so that the work can continue. Work
        of this output under other keys is removed, and so are the checkpoints of the finished work.

        Args:
            relative: the output, relative to the project.
            key: settings and digests of inputs that decide the output.
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
        shutil.rmtree(self.checkpoints(work).parent, ignore_errors=True)
