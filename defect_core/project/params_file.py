"""Reading params.yaml as plain values: one reader for the settings, DVC's view of them, and the transactions."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from defect_core.errors import InputError

MAX_BYTES = 8 << 20
MAX_DEPTH = 24
"""Deepest nesting of mappings and lists. The settings need fewer than ten levels."""
MAX_VALUES = 1_000_000
"""Largest number of values after aliases are replaced by what they stand for."""


def read_params_file(path: Path, name: str = "params.yaml") -> dict[str, Any]:
    """Return the content of params.yaml; an empty file is an empty mapping.

    Args:
        path: the file.
        name: name of the file in messages.

    Raises:
        InputError: the file is missing, larger than 8 MB, no UTF-8, no YAML or no mapping, has a key twice, is
            nested too deeply, or has aliases that expand without end.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: not found in {path.parent or '.'}; `defectory init DIR` creates a project") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected a readable file") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MB; expected settings")
    try:
        return parse_params(content.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def parse_params(text: str, name: str = "params.yaml") -> dict[str, Any]:
    """Return the content of the text of a params.yaml; see `read_params_file`."""
    try:
        _check_depth(text, name)
        values = _load(text, name)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected a mapping of settings, found {type(values).__name__}")
    if _count_values(values, {}, set(), name) > MAX_VALUES:
        raise InputError(f"{name}: has more than {MAX_VALUES} values after its aliases are replaced; write values out")
    return values


_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):
    """A safe loader that refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise _DuplicateKeyError(f"line {line}: the key {key!r} is also in line {seen[key]}; keep one of them")
            if key is not None:
                seen[key] = line
        return super().construct_mapping(node, deep)


class _DuplicateKeyError(Exception):
    """A mapping has the same key twice."""


def _load(text: str, name: str) -> Any:
    loader = _UniqueKeyLoader(text)
    try:
        return loader.get_single_data()
    except _DuplicateKeyError as error:
        raise InputError(f"{name}: {error}") from None
    finally:
        loader.dispose()


def _check_depth(text: str, name: str) -> None:
    """Refuse deep nesting before the document is composed, because composing is recursive."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise InputError(f"{name}: line {line}: nested deeper than {MAX_DEPTH} levels; expected settings")


def _count_values(value: Any, known: dict[int, int], open_nodes: set[int], name: str) -> int:
    """Return the number of values after expansion; a node that aliases share is counted for each use."""
    if not isinstance(value, (Mapping, Sequence)) or isinstance(value, (str, bytes)):
        return 1
    if id(value) in open_nodes:
        raise InputError(f"{name}: an alias contains itself; write its value out")
    if id(value) not in known:
        open_nodes.add(id(value))
        parts = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count_values(part, known, open_nodes, name) for part in parts)
        open_nodes.discard(id(value))
    return known[id(value)]
