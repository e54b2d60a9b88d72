"""Text of YAML values that every reader takes as the strings that they are, and that DVC does not interpolate.

PyYAML emits them. It knows YAML 1.1; DVC reads YAML 1.2, where `0815` and `1e3` are numbers too. So every string that
is not plainly a word or a path is quoted.
"""

import re
from collections.abc import Mapping

import yaml

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_/.@-]*")
_WORDS = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])


class _Dumper(yaml.SafeDumper):
    """Emits strings in double quotes where a reader of any version of YAML could see something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def emit_text(text: str) -> str:
    """Return a string as a YAML scalar on one line."""
    return _emit(text).removesuffix("...").rstrip()


def emit_mapping(mapping: Mapping[str, str]) -> str:
    """Return a mapping of strings in flow style on one line."""
    return _emit(dict(mapping))


def escape_dvc(text: str) -> str:
    r"""Return text in which DVC interpolates nothing: `${` becomes `\${`."""
    return text.replace("${", r"\${")


def _emit(value: object) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf")
    )
    return text.strip()
