"""Every listed fault in a method is caught by the test that is named for it."""

import subprocess
import sys

import pytest

from tests.mutations.__main__ import TABLE, _all_mutations, _problem, render_table
from tests.mutations.mutation import ROOT


def test_every_mutation_applies_to_the_current_source_and_is_in_the_table():
    listed = _all_mutations()
    assert [problem for _, each in listed if (problem := _problem(each))] == []
    assert TABLE.read_text(encoding="utf-8") == render_table(listed), "run python -m tests.mutations"


@pytest.mark.slow
def test_every_mutation_is_caught():
    done = subprocess.run([sys.executable, "-m", "tests.mutations"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
