"""The map over processes: order, bounded memory, errors, and scripts without a main guard."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from defect_core.data.parallel import map_ordered

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("count", "chunk"), [(0, 8), (5, 8), (150, 7)])
def test_results_are_in_the_order_of_the_items(workers, count, chunk):
    assert list(map_ordered(abs, range(-count, 0), workers, chunk)) == list(range(count, 0, -1))


def test_items_are_read_only_a_few_chunks_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_ordered(abs, items(), 2, 10)
    assert next(results) == 0
    assert len(taken) <= 64 + 2 * 3 * 10
    results.close()


def test_the_first_error_is_raised():
    denominators = [1] * 100 + [0] + [1] * 20
    with pytest.raises(ZeroDivisionError):
        list(map_ordered(Fraction(1).__truediv__, denominators, 2))
    with pytest.raises(ValueError, match="expected at least 1"):
        list(map_ordered(abs, [1], 0))


def test_a_process_that_the_system_ends_is_an_error_with_a_cure():
    from defect_core.errors import InputError

    with pytest.raises(InputError, match="ended by the system; expected enough memory"):
        list(map_ordered(os._exit, range(1, 100), 2))


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\nfrom defect_core.data.parallel import map_ordered\n"
        "print(sum(map_ordered(abs, range(200), 2)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, check=True)
    assert ran.stdout.split() == ["started", "19900"]
