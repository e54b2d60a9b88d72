"""A list of problems with the user's data, so that one message names all of them."""

import os
import unicodedata
from pathlib import Path

from defect_core.errors import InputError, InputErrors

_UNSAFE = frozenset(
    {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
)  # controls, direction marks, lone surrogates, separators


def printable(name: str | Path) -> str:
    r"""Return a file name or value for a message: control characters and undecodable bytes become escapes.

    Letters of all scripts and emoji stay. Undecodable bytes of a file name are written as `\xff`.
    """
    text = os.fspath(name) if isinstance(name, Path) else str(name)
    return "".join(
        _escape(character) if unicodedata.category(character) in _UNSAFE else character for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, kept by the surrogateescape error handler
        return f"\\x{code - 0xDC00:02x}"
    if character in "\u200c\u200d":  # joiners of emoji and of several scripts
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class ProblemLog:
    """Collects problems, one line each, and raises them together."""

    def __init__(self) -> None:
        """Start with no problem."""
        self._lines: dict[str, None] = {}

    @property
    def problems(self) -> list[str]:
        """The problems so far, one line each."""
        return list(self._lines)

    def __len__(self) -> int:
        """Return the number of problems."""
        return len(self._lines)

    def add(self, where: str | Path, what: str, cure: str = "") -> None:
        """Add a problem.

        Args:
            where: the file or field.
            what: what is wrong, with the value found.
            cure: what to do.
        """
        line = f"{where}: {what}" + (f"; {cure}" if cure else "")
        self.add_line(line)

    def add_error(self, error: InputError) -> None:
        """Add each problem of an error."""
        for line in error.problems if isinstance(error, InputErrors) else (str(error),):
            self.add_line(line)

    def raise_if_any(self) -> None:
        """Raise the problems.

        Raises:
            InputError: there is exactly one problem.
            InputErrors: there are several.
        """
        if len(self) == 1:
            raise InputError(*self.problems)
        if self:
            raise InputErrors(self.problems)

    def add_line(self, line: str) -> None:
        """Add a problem that is a whole line; the same line is added once."""
        self._lines[printable(" ".join(line.split("\n")))] = None
