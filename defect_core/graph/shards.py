"""Work for other machines: the files that a task needs and those it gives back, and a synthetic set cut in shards.

Nothing here knows who carries the files; `defect_core.graph.ray` lets Ray do it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from defect_core.graph.instances import Instance
from defect_core.project.paths import PARAMS_FILE, Project
from defect_core.synthesis.batches import Batch

# content by path relative to a folder
Files = dict[str, bytes]
_SCRATCH = "defectory-work-"


def deal(batches: Sequence[Batch], shares: int) -> list[list[Batch]]:
    """Cut batches into at most `shares` shards, none empty, whose lengths differ by one at most.

    A shard is made of whole batches: the last bit of a sample may depend on the batch that it is drawn in.
    """
    shares = max(1, min(shares, len(batches)))
    return [list(batches[number::shares]) for number in range(shares)] if batches else []


def pack_inputs(project: Project, instance: Instance) -> Files:
    """params.yaml and all that an instance is declared to read; a backbone too, where it is a folder of the project."""
    paths = [PARAMS_FILE, *instance.inputs]
    backbone = project.path(project.params.backbone)
    if backbone.is_dir() and backbone.resolve().is_relative_to(project.root):
        paths.append(project.params.backbone)
    return collect(project.root, paths)


def pack_outputs(project: Project, instance: Instance) -> Files:
    """What an instance wrote."""
    return collect(project.root, [*instance.outputs, *instance.metrics])


def collect(folder: Path, paths: Iterable[str] = (".",)) -> Files:
    """The files at and below some paths of a folder."""
    found: Files = {}
    for path in paths:
        start = folder / path
        for file in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if file.is_file():
                found[file.relative_to(folder).as_posix()] = file.read_bytes()
    return found


def write_files(files: Files, folder: Path, last: str = "") -> None:
    """Write files below a folder; those whose names begin with `last` after all others."""
    for name in sorted(files, key=lambda name: (bool(last) and name.startswith(last), name)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(files[name])
        os.replace(fresh, path)


def deliver(files: Files, project: Project, instance: Instance) -> None:
    """Put what an instance wrote elsewhere in its place here; each output appears whole or not at all."""
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
def scratch() -> Iterator[Path]:
    """A folder on this machine for as long as the block lasts; those that killed workers left behind go.

    Its name holds the process id. Whoever works in one holds a lock on it, which ends with the process.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_SCRATCH}*-*"):
        with suppress(OSError), _locked(left):
            # an empty one may have been made this moment, and not be locked yet
            if any(left.iterdir()):
                shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=parent) as folder,
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
