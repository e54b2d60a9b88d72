"""Readers of untrusted JSON, XML, YAML and text: limits on size and depth, no XML entities, errors of one line."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from defect_core.errors import InputError

MAX_DEPTH = 64
"""Deepest nesting of an XML file. Annotations need fewer than ten levels."""
MAX_MEGABYTES = 512
MAX_NUMBER = 1e9
"""Largest coordinate, in pixels. Larger ones are errors, and their squares would lose all precision."""
_MEGABYTE = 1 << 20


def read_bytes(path: Path, max_megabytes: int = MAX_MEGABYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        max_megabytes: largest size that is read.

    Raises:
        InputError: the file is missing, is not a regular file, cannot be read, or is too large.
    """
    try:
        if not path.is_file():  # a FIFO or a device would block or never end
            raise InputError(f"{path}: not a regular file; expected an annotation file")
        with path.open("rb") as stream:
            content = stream.read(max_megabytes * _MEGABYTE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a readable file") from None
    if len(content) > max_megabytes * _MEGABYTE:
        raise InputError(
            f"{path}: larger than {max_megabytes} MB; split it, or raise the option annotations.max_megabytes"
        )
    return content


def read_text(path: Path, max_megabytes: int = MAX_MEGABYTES) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: as `read_bytes`, or another encoding.
    """
    content = read_bytes(path, max_megabytes)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not {encoding.removesuffix('-sig').upper()}; save the file as UTF-8"
        ) from None


def read_json(path: Path, max_megabytes: int = MAX_MEGABYTES) -> Any:
    """Return the content of a JSON file; NaN and Infinity are refused.

    Raises:
        InputError: as `read_text`, or the file is no JSON, or is nested too deeply.
    """
    text = read_text(path, max_megabytes)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: no valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); export the file again"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; expected an export of an annotation tool") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected finite numbers of usual length") from None


def read_yaml(path: Path, max_megabytes: int = 1) -> Any:
    """Return the content of a YAML file without aliases, by the safe loader.

    Raises:
        InputError: as `read_text`, or the file is no YAML, or has aliases.
    """
    text = read_text(path, max_megabytes)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise InputError(f"{path}: has an alias ('*'); write its value out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}: no valid YAML{line}; correct the file") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; expected names of classes and folders") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected numbers of usual length") from None


class _RefusedError(Exception):
    """An XML file has content that is never read."""


def read_xml(path: Path, max_megabytes: int = MAX_MEGABYTES) -> ElementTree.Element:
    """Return the root element of an XML file.

    A document type declaration is refused, so that no entity is defined, expanded or fetched.

    Raises:
        InputError: as `read_bytes`, or the file is no XML, declares a document type, or is nested deeper than
            `MAX_DEPTH`.
    """
    content = read_bytes(path, max_megabytes)
    builder, parser, depth = ElementTree.TreeBuilder(), expat.ParserCreate(), 0
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_DEPTH} levels; expected an export of an annotation tool")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise _RefusedError("declares a document type (DOCTYPE) or an entity; remove the declaration")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except _RefusedError as error:
        raise InputError(f"{path}: {error}") from None
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise InputError(
            f"{path}: no valid XML at line {error.lineno}, column {error.offset + 1} ({reason}); export the file again"
        ) from None
    except (LookupError, ValueError):
        raise InputError(f"{path}: unknown encoding; save the file as UTF-8") from None


def finite_number(value: Any) -> float | None:
    """Return a number of at most `MAX_NUMBER` as float, None for anything else; text that is a number is accepted.

    >>> finite_number("2.5"), finite_number(True), finite_number("nan"), finite_number([1])
    (2.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= MAX_NUMBER else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"has the number {name}")
