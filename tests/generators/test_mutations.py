"""Every listed fault in a method is caught by the test that is named for it (`benchmarks/mutations`)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*options):
    command = [sys.executable, "-m", "benchmarks.mutations", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_mutation_applies_to_the_source_and_is_in_the_table():
    done = _run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_mutation_is_caught():
    done = _run()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
