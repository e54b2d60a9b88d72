"""What a command prints and which status it ends with when something fails. No traceback without `--debug`."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from defect_core.errors import InputError, InputErrors

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
CHILD_VARIABLE = "DEFECTORY_LIFELINE"
"""Set in child processes of `defectory run`; the parent prints what an interruption means."""
_show_tracebacks = False


def show_tracebacks(enabled: bool) -> None:
    """Choose whether `run_guarded` prints tracebacks (`--debug`)."""
    global _show_tracebacks
    _show_tracebacks = enabled


def run_guarded(command: Callable[[], object]) -> None:
    """Run a command and exit with its status.

    Status 2: the input is wrong (each problem is one line on standard error). Status 1: the work failed, for example a
    full disk or a missing permission. Status 130: interrupted.
    """
    try:
        command()
    except InputError as error:
        _print_traceback()
        problems = error.problems if isinstance(error, InputErrors) else (str(error),)
        _print_and_exit(WRONG_INPUT, *problems)
    except SystemExit as error:
        if error.code == INTERRUPTED:
            _explain_interruption()
        raise
    except KeyboardInterrupt:
        _explain_interruption()
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has ended, for example `| head`. Python would fail again when it flushes at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        _print_traceback()
        _print_and_exit(FAILED, describe_failure(error))


def describe_failure(error: BaseException) -> str:
    """Return one line about an error that is no mistake in the input."""
    if isinstance(error, OSError):
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        where = "" if error.filename is None else f"{_relative(error.filename)}: "
        return f"{where}{reason}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({_one_line(error)}); lower the batch size or the image size in params.yaml"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" in {Path(last[0].filename).name}:{last[0].lineno}" if last else ""
    return f"internal error{where}: {_one_line(error)}; `defectory --debug ...` prints the details"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _relative(filename: object) -> str:
    path = os.fsdecode(filename) if isinstance(filename, bytes) else str(filename)
    with contextlib.suppress(ValueError, OSError):
        return Path(path).relative_to(Path.cwd()).as_posix()
    return path


def _print_traceback() -> None:
    if _show_tracebacks:
        traceback.print_exc()


def _print_and_exit(status: int, *problems: str) -> None:
    for problem in problems:
        print(f"defectory: {problem}", file=sys.stderr)
    sys.exit(status)


def _explain_interruption() -> None:
    if CHILD_VARIABLE not in os.environ:
        print("defectory: stopped; finished work is kept, the same command continues", file=sys.stderr)
