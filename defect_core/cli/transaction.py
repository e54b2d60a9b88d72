"""Changes of a project's files that happen together or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from defect_core.data.files import atomic_path
from defect_core.graph.dvcfile import CODE_FILE
from defect_core.graph.source_links import DVC_CONFIG, LOCAL_CONFIG, link_sources
from defect_core.project.params import load_params
from defect_core.project.paths import PARAMS_FILE, Project

_FILES = (PARAMS_FILE, "dvc.yaml", "dvc.lock", CODE_FILE, DVC_CONFIG, LOCAL_CONFIG)


@contextmanager
def edited_params(project: Project) -> Iterator[Any]:
    """Yield the content of params.yaml to change in place; it is written back with its comments, after a check.

    Raises:
        InputError: the changed settings are invalid; the file is unchanged.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    yaml.preserve_quotes = True
    path = project.path(PARAMS_FILE)
    content = yaml.load(path.read_text(encoding="utf-8")) or {}
    yield content
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        load_params(temporary)


def quoted(text: str) -> str:
    """Return a string that ruamel writes in quotes if another version of YAML could read something else."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    from defect_core.graph.yaml_text import emit_text

    return DoubleQuotedScalarString(text) if emit_text(text) != text else text


@contextmanager
def all_or_nothing(project: Project) -> Iterator[Path]:
    """Yield a folder; after an error the settings, dvc.yaml, dvc.lock and all paths that were moved away are as before.

    Paths that `move_away` moves into the folder are deleted when the block ends without an error.
    """
    had_state = project.state.is_dir()
    project.state.mkdir(exist_ok=True)
    before = {name: _read(project.path(name)) for name in _FILES}
    removed_files = Path(tempfile.mkdtemp(prefix="removed_files-", dir=project.state))
    try:
        yield removed_files
    except BaseException:
        for name, content in before.items():
            _restore(project.path(name), content)
        for moved in sorted(removed_files.rglob("*.removed_files")):
            target = project.root / moved.relative_to(removed_files).with_suffix("")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(moved, target)
        link_sources(Project(project.root))
        raise
    finally:
        shutil.rmtree(removed_files, ignore_errors=True)
        if not had_state:
            _remove_empty(project.state)


def move_away(project: Project, relative: str, removed_files: Path) -> bool:
    """Move a file or folder of the project into the folder of `all_or_nothing`.

    Returns:
        Whether there was something to move.
    """
    path = project.root / relative
    if not path.exists() and not path.is_symlink():
        return False
    target = removed_files / f"{relative}.removed_files"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return True


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif _read(path) != content:
        path.write_bytes(content)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that contains nothing but empty folders."""
    if folder.is_dir() and not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        shutil.rmtree(folder)
