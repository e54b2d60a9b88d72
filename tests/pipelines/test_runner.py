"""The local runner: streaming, waiting for DVC, telling mistakes from failures, leaving no child behind."""

import sys
import time

import dagster as dg
import psutil
import pytest

from defect_core.errors import InputError
from defect_core.graph.instances import find_instance
from pipelines.definitions import runner_resource
from pipelines.runner import LocalRunner, RunnerError, make_runner

BUSY = (255, ["ERROR: failed to reproduce 'split@bolt': 'data/raw/bolt' is busy, it is being blocked by:"])


@pytest.fixture
def instance(laid_down):
    return find_instance("split", laid_down[0].params, product="bolt")


def _answering(monkeypatch, laid_down, answers):
    runner = LocalRunner(laid_down[0], tries=3, wait_s=0)
    commands = []
    monkeypatch.setattr(runner, "_run", lambda command, log: (commands.append(command), answers.pop(0))[1])
    return runner, commands


def test_it_waits_while_another_dvc_process_is_at_work(monkeypatch, laid_down, instance):
    runner, commands = _answering(monkeypatch, laid_down, [BUSY, BUSY, (0, [])])
    said = []
    runner.bring_up_to_date(instance, said.append)
    assert len(commands) == 3
    assert commands[0][1:] == ["-m", "dvc", "repro", "--single-item", "split@bolt"]
    assert len(said) == 2 and "another DVC process" in said[0]


def test_it_gives_up_in_the_end_and_at_once_for_other_failures(monkeypatch, laid_down, instance):
    runner, commands = _answering(monkeypatch, laid_down, [BUSY] * 3)
    with pytest.raises(RunnerError, match="is busy"):
        runner.bring_up_to_date(instance, print)
    assert len(commands) == 3
    runner, commands = _answering(monkeypatch, laid_down, [(1, ["Traceback", "ValueError: x"])])
    with pytest.raises(RunnerError, match="Traceback\nValueError: x"):
        runner.bring_up_to_date(instance, print)
    assert len(commands) == 1


def test_a_mistake_of_the_user_is_one_line(monkeypatch, laid_down, instance):
    answer = (
        255,
        ["> defectory stage split", "defectory: params.yaml: split: wrong", "ERROR: failed to reproduce"],
    )
    runner, _ = _answering(monkeypatch, laid_down, [answer])
    with pytest.raises(InputError, match=r"^params.yaml: split: wrong$"):
        runner.bring_up_to_date(instance, print)


def test_both_streams_arrive_line_by_line_while_the_child_works(laid_down):
    program = (
        "import sys, time; print('one'); print('\\x1b[32mtwo\\x1b[0m', file=sys.stderr)\n"
        "time.sleep(1); print('a\\rb'); sys.exit(3)"
    )
    times = {}
    status, lines = LocalRunner(laid_down[0])._run(
        [sys.executable, "-c", program], lambda line: times.setdefault(line, time.monotonic())
    )
    assert status == 3
    assert sorted(lines) == ["a", "b", "one", "two"]
    assert times["b"] - max(times["one"], times["two"]) > 0.5


def test_a_cancelled_run_leaves_no_child_behind(laid_down):
    grandchild = "import time; time.sleep(60)"
    program = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {grandchild!r}])\n"
        "print(child.pid); child.wait()"
    )
    pids = []

    def cancel(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalRunner(laid_down[0])._run([sys.executable, "-c", program], cancel)
    (pid,) = pids
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("name", "address"), [("local", ""), ("ray", "10.0.0.1:6379"), ("kubernetes", "")])
def test_the_child_learns_who_does_the_work(laid_down, name, address):
    program = "import os; print(os.environ['DEFECTORY_RUNNER'], os.environ.get('RAY_ADDRESS', ''))"
    status, lines = make_runner(laid_down[0], name, address)._run([sys.executable, "-c", program], lambda line: None)
    assert (status, lines) == (0, [f"{name} {address}".strip()])


def test_a_run_may_choose_another_runner_than_the_environment(laid_down, monkeypatch):
    monkeypatch.setenv("DEFECTORY_RUNNER", "local")
    resource = runner_resource(laid_down[0])

    def made(config):
        return resource(dg.build_init_resource_context(config=config))

    assert type(made({})) is LocalRunner
    assert made({"name": "ray", "address": "a:1"}).environment == {"DEFECTORY_RUNNER": "ray", "RAY_ADDRESS": "a:1"}
    with pytest.raises(dg.Failure, match="'slurm' is unknown; expected one of local, ray, kubernetes"):
        made({"name": "slurm"})
