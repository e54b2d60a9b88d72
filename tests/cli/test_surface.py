"""What the command prints, and its exit status, when something fails."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from defect_core.cli.surface import describe_failure, run_guarded, show_tracebacks
from defect_core.errors import InputErrors


def _outcome(command, capsys):
    with pytest.raises(SystemExit) as caught:
        run_guarded(command)
    return caught.value.code, capsys.readouterr().err


def _raise(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputErrors(["a: wrong", "b: wrong"]), 2, "defectory: a: wrong\ndefectory: b: wrong\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), 1, "defectory: x/y: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "defectory: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system", b"z"), 1, "defectory: z: Read-only file system\n"),
        (KeyboardInterrupt(), 130, "defectory: stopped; finished work is kept, the same command continues\n"),
    ],
)
def test_an_error_is_one_line_with_its_status(error, status, message, capsys):
    assert _outcome(_raise(error), capsys) == (status, message)


def test_an_unexpected_error_is_one_line_that_says_where(capsys):
    status, text = _outcome(lambda: [][1], capsys)
    assert status == 1 and text.count("\n") == 1 and "Traceback" not in text
    assert text.startswith("defectory: internal error in test_surface.py:") and "IndexError" in text


def test_debug_prints_the_traceback(capsys):
    show_tracebacks(True)
    try:
        status, text = _outcome(lambda: [][1], capsys)
    finally:
        show_tracebacks(False)
    assert status == 1 and "Traceback (most recent call last)" in text


def test_memory_errors_say_what_to_lower():
    assert "lower the batch size" in describe_failure(MemoryError("18 GB"))


def test_a_path_in_the_current_folder_is_shown_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe_failure(PermissionError(13, "denied", str(tmp_path / "a"))) == "a: denied"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_says_what_is_kept():
    script = "import time; from defect_core.cli.surface import run_guarded; print(1, flush=True)\n"
    script += "run_guarded(lambda: time.sleep(30))"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "1\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, text = child.communicate(timeout=20)
    assert child.returncode == 130 and "finished work is kept" in text and "Traceback" not in text
