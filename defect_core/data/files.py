"""Atomic writes: a file or folder appears under its final name complete or not at all."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from defect_core.errors import NonFiniteError


@contextmanager
def atomic_path(path: Path, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, and rename it to `path` when the block ends without an error.

    An error in the block removes the temporary file or folder and leaves `path` as it was. A file is on the disk before
    it is renamed, so that a power cut leaves the old file or the new one.

    Args:
        path: the file or the new folder to create; missing parent folders are created.
        concurrent: whether several processes may write `path` at the same time. The name of the temporary file then
            contains the process id. Otherwise it is always the same, so that a leftover of a killed run is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new" if concurrent else f"{path.name}.new")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            sync_to_disk(temporary)
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk; nothing where the system cannot do it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # For example a folder on Windows, or a network file system.
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, concurrent: bool = False) -> None:
    """Write a file atomically; `concurrent` as in `atomic_path`."""
    with atomic_path(path, concurrent) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically, in UTF-8 and with the line ends of `content`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any, sort_keys: bool = True, ensure_ascii: bool = False) -> None:
    """Write JSON atomically, indented by 2 and with a final newline.

    Args:
        path: the file to write.
        content: what `json.dumps` accepts.
        sort_keys: whether keys are sorted; otherwise they keep their order.
        ensure_ascii: whether characters outside ASCII are escaped.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    try:
        text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        where = find_non_finite(content)
        if where is None:
            raise
        raise NonFiniteError(f"{path.name}: {where} is not finite; nothing was written") from None
    write_text(path, text + "\n")


def find_non_finite(content: Any, where: str = "") -> str | None:
    """Return the key path of the first NaN or infinite number in JSON values, such as `mean.pixel_ap`; None if none."""
    if isinstance(content, float):
        return None if math.isfinite(content) else where or "the value"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Mapping):
        parts = content.items()
    elif isinstance(content, list | tuple):
        parts = enumerate(content)
    for key, value in parts:
        found = find_non_finite(value, f"{where}.{key}" if where else str(key))
        if found is not None:
            return found
    return None


def replace_folder(new: Path, target: Path) -> None:
    """Rename a complete folder to `target`, whose earlier content is removed; readers never see a mixture of both."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def folder_digest(folder: Path) -> str:
    """Return the sha256 (hex) over the relative names and the bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
