"""Errors that a user can cause."""

from collections.abc import Sequence


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
