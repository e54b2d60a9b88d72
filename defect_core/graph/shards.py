"""Work for other machines: the files that a task reads and writes, and a synthetic set divided into shards.

This module does not know how files are transported; `defect_core.graph.ray_runner` uses Ray for it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from defect_core.data.files import write_bytes
from defect_core.graph.instances import Instance
from defect_core.project.paths import PARAMS_FILE, Project
from defect_core.synthesis.batches import Batch

# Content by path relative to a folder.
Files = dict[str, bytes]
_WORK_FOLDER_PREFIX = "defectory-work-"


def split_into_shards(batches: Sequence[Batch], count: int) -> list[list[Batch]]:
    """Divide batches into at most `count` shards, none empty, whose lengths differ by at most one.

    A shard consists of whole batches, because rounding may depend on the batch that a sample is in.
    """
    count = max(1, min(count, len(batches)))
    return [list(batches[number::count]) for number in range(count)] if batches else []


def pack_inputs(project: Project, instance: Instance) -> Files:
    """Return params.yaml, the declared inputs of an instance, and the backbone if it is a folder of the project."""
    paths = [PARAMS_FILE, *instance.inputs]
    backbone = project.path(project.params.backbone)
    if backbone.is_dir() and backbone.resolve().is_relative_to(project.root):
        paths.append(project.params.backbone)
    return collect_files(project.root, paths)


def pack_outputs(project: Project, instance: Instance) -> Files:
    """Return what an instance wrote."""
    return collect_files(project.root, [*instance.outputs, *instance.metrics])


def collect_files(folder: Path, paths: Iterable[str] = (".",)) -> Files:
    """Return the files at and below some paths of a folder."""
    files: Files = {}
    for path in paths:
        start = folder / path
        for file in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if file.is_file():
                files[file.relative_to(folder).as_posix()] = file.read_bytes()
    return files


def write_files(files: Files, folder: Path, last: str = "") -> None:
    """Write files below a folder; files whose names begin with `last` are written after all others."""
    for name in sorted(files, key=lambda name: (bool(last) and name.startswith(last), name)):
        write_bytes(folder / name, files[name])


def install_outputs(files: Files, project: Project, instance: Instance) -> None:
    """Move what an instance wrote on another machine to its place; each output appears complete or not at all."""
    project.state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.state) as folder:
        write_files(files, Path(folder))
        for path in [*instance.outputs, *instance.metrics]:
            target = project.path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(Path(folder) / path, target)


@contextmanager
def temporary_work_folder() -> Iterator[Path]:
    """Yield a folder on this machine that is removed at the end; folders of killed processes are removed first.

    The name of the folder contains the process id. Its process holds a lock on it, which ends with the process.
    """
    parent = Path(tempfile.gettempdir())
    for leftover in parent.glob(f"{_WORK_FOLDER_PREFIX}*-*"):
        with suppress(OSError), _locked(leftover):
            # An empty folder may have been created this moment and not be locked yet.
            if any(leftover.iterdir()):
                shutil.rmtree(leftover)
    with (
        tempfile.TemporaryDirectory(prefix=f"{_WORK_FOLDER_PREFIX}{os.getpid()}-", dir=parent) as folder,
        _locked(Path(folder)),
    ):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
