"""The local runner: it streams lines, waits for DVC, separates input errors from failures, and stops its children."""

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
def instance(ingested_project):
    return find_instance("split", ingested_project[0].params, product="bolt")


def _runner_with_results(monkeypatch, ingested_project, results):
    runner = LocalRunner(ingested_project[0], tries=3, wait_s=0)
    commands = []
    monkeypatch.setattr(runner, "_run", lambda command, log: (commands.append(command), results.pop(0))[1])
    return runner, commands


def test_it_waits_while_another_dvc_process_holds_the_files(monkeypatch, ingested_project, instance):
    runner, commands = _runner_with_results(monkeypatch, ingested_project, [BUSY, BUSY, (0, [])])
    lines = []
    runner.bring_up_to_date(instance, lines.append)
    assert len(commands) == 3
    assert commands[0][1:] == ["-m", "dvc", "repro", "--single-item", "split@bolt"]
    assert len(lines) == 2 and "another DVC process" in lines[0]


def test_it_stops_after_the_last_try_and_at_once_for_other_failures(monkeypatch, ingested_project, instance):
    runner, commands = _runner_with_results(monkeypatch, ingested_project, [BUSY] * 3)
    with pytest.raises(RunnerError, match="is busy"):
        runner.bring_up_to_date(instance, print)
    assert len(commands) == 3
    runner, commands = _runner_with_results(monkeypatch, ingested_project, [(1, ["Traceback", "ValueError: x"])])
    with pytest.raises(RunnerError, match="Traceback\nValueError: x"):
        runner.bring_up_to_date(instance, print)
    assert len(commands) == 1


def test_an_input_error_of_the_stage_is_one_line(monkeypatch, ingested_project, instance):
    result = (
        255,
        ["> defectory stage split", "defectory: params.yaml: split: wrong", "ERROR: failed to reproduce"],
    )
    runner, _ = _runner_with_results(monkeypatch, ingested_project, [result])
    with pytest.raises(InputError, match=r"^params.yaml: split: wrong$"):
        runner.bring_up_to_date(instance, print)


def test_both_streams_are_logged_line_by_line_while_the_child_runs(ingested_project):
    program = (
        "import sys, time; print('one'); print('\\x1b[32mtwo\\x1b[0m', file=sys.stderr)\n"
        "time.sleep(1); print('a\\rb'); sys.exit(3)"
    )
    times = {}
    status, lines = LocalRunner(ingested_project[0])._run(
        [sys.executable, "-c", program], lambda line: times.setdefault(line, time.monotonic())
    )
    assert status == 3
    assert sorted(lines) == ["a", "b", "one", "two"]
    assert times["b"] - max(times["one"], times["two"]) > 0.5


def test_a_cancelled_run_stops_its_child_processes(ingested_project):
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
        LocalRunner(ingested_project[0])._run([sys.executable, "-c", program], cancel)
    (pid,) = pids
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _is_alive(pid):
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("name", "address"), [("local", ""), ("ray", "10.0.0.1:6379"), ("kubernetes", "")])
def test_the_environment_of_the_child_names_the_runner(ingested_project, name, address):
    program = "import os; print(os.environ['DEFECTORY_RUNNER'], os.environ.get('RAY_ADDRESS', ''))"
    status, lines = make_runner(ingested_project[0], name, address)._run(
        [sys.executable, "-c", program], lambda line: None
    )
    assert (status, lines) == (0, [f"{name} {address}".strip()])


def test_a_run_may_override_the_runner_of_the_environment(ingested_project, monkeypatch):
    monkeypatch.setenv("DEFECTORY_RUNNER", "local")
    resource = runner_resource(ingested_project[0])

    def create(config):
        return resource(dg.build_init_resource_context(config=config))

    assert type(create({})) is LocalRunner
    assert create({"name": "ray", "address": "a:1"}).environment == {"DEFECTORY_RUNNER": "ray", "RAY_ADDRESS": "a:1"}
    with pytest.raises(dg.Failure, match="'slurm' is unknown; expected one of local, ray, kubernetes"):
        create({"name": "slurm"})
