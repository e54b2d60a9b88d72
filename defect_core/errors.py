"""Errors that a user can cause."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: which file or field, and what is expected.
    The command line prints it to standard error and exits with status 2.
    """


class InputErrors(InputError):  # noqa: N818 - the plural of InputError
    """Several things that the user gave are wrong.

    The command line prints each problem on its own line and exits with status 2.

    Attributes:
        problems: one line each: where, what is wrong, what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep the problems; the message joins them by newlines.

        Args:
            problems: one line each, at least one.
        """
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class NonFiniteError(InputError):
    """A loss, gradient, weight, pixel or score is NaN or infinite; the settings or the images must change."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return what a misspelt name should be: `did you mean 'seas'? expected one of cadiff, seas`.

    Args:
        name: the name that is unknown.
        known: the names that are known; a long list is left out if one of them is similar.
    """
    names = list(known)
    close = get_close_matches(name, names, n=1)
    question = f"did you mean {close[0]!r}?" if close else ""
    if question and len(names) > 12:
        return question
    expected = f"expected one of {', '.join(names)}" if names else "none is known here"
    return f"{question} {expected}".strip()
