"""Errors that a user can cause."""


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: which file or field, and what is expected.
    The command line prints it to standard error and exits with status 2.
    """
