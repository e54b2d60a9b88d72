"""Reading what stages wrote: nothing in a file is trusted before it is checked.

A file may be damaged by a full disk, a power cut, a merge conflict or an edit. Every reader here ends with one line
that names the file and the cure.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from defect_core.errors import InputError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

CURE = "restore it with `dvc checkout`, or delete it and run `defectory run`"
MAX_JSON_BYTES = 1 << 30


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON object in a file that a stage wrote.

    Args:
        path: the file.
        keys: keys that the object must have.

    Raises:
        InputError: the file is missing, is no JSON object in UTF-8, has NaN or an infinite number, or lacks a key.
    """
    content = _load_json(path)
    if not isinstance(content, dict):
        raise damaged(path, f"expected a JSON object, found {type(content).__name__}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise damaged(path, f"the key {missing[0]!r} is missing")
    return content


def read_json_list(path: Path) -> list[Any]:
    """Return the JSON list in a file that a stage wrote. Raises InputError as `read_json`."""
    content = _load_json(path)
    if not isinstance(content, list):
        raise damaged(path, f"expected a JSON list, found {type(content).__name__}")
    return content


def read_tensors(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Return the tensors of a safetensors file on the CPU, and its metadata.

    Args:
        path: the file.
        names: names that the file must have, and no others; None: any.

    Raises:
        InputError: the file is missing, is no whole safetensors file, or has other names.
        NonFiniteError: a value is NaN or infinite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: missing; {CURE}")
    try:
        with safe_open(path, "pt") as stored:
            metadata = dict(stored.metadata() or {})
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise damaged(path, " ".join(str(error).split())) from None
    if names is not None and set(names) != set(tensors):
        different = sorted(set(names) ^ set(tensors))
        raise damaged(path, f"the tensor {different[0]!r} is {'missing' if different[0] in names else 'unknown'}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{path}: the tensor {name!r} has a value that is not finite; train it again")
    return tensors, metadata


def inside(folder: Path, relative: str) -> Path:
    """Return the path of a file that a table names, which must be inside the folder of the table.

    Raises:
        InputError: the path is absolute, or leads out of the folder, also by a symbolic link.
    """
    pure = PurePosixPath(relative)
    path = folder / relative
    is_plain = relative and not pure.is_absolute() and ".." not in pure.parts and "\\" not in relative
    if not is_plain or "\0" in relative or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: names the file {relative!r}, which is not inside this folder; {CURE}")
    return path


def require_keys(content: Mapping[str, Any], path: Path, *keys: str) -> None:
    """Raise InputError if a part of a JSON file lacks a key."""
    for key in keys:
        if key not in content:
            raise damaged(path, f"the key {key!r} is missing")


def damaged(path: Path, reason: str) -> InputError:
    """Return the error about a file that cannot be used."""
    return InputError(f"{path}: damaged ({reason}); {CURE}")


def _load_json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise InputError(f"{path}: missing; {CURE}")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise damaged(path, f"larger than {MAX_JSON_BYTES >> 20} MB")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise damaged(path, "nested too deeply") from None
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise damaged(path, " ".join(str(error).split())) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"has the number {name}")
