"""Runners: they bring one stage instance up to date, on this machine or elsewhere.

DVC decides whether anything must run. The work runs in a child process, which frees its GPU memory when it ends.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from defect_core.errors import InputError
from defect_core.graph import dvcfile
from defect_core.graph.instances import Instance
from defect_core.graph.local import RUNNERS, child_environment
from defect_core.project.paths import Project
from defect_core.project.sources import record_source

Log = Callable[[str], object]

LAST_LINES = 20
"""Number of output lines that an error message contains."""
STOP_TIMEOUT_S = 10.0
MAX_WAIT_S = 60.0
_BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
_INPUT_ERROR_PREFIX = "defectory: "
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RunnerError(Exception):
    """The work failed; the message is the last lines of the child process."""


class Runner(Protocol):
    """Brings one stage instance up to date, and runs nothing if it already is."""

    def bring_up_to_date(self, instance: Instance, log: Log) -> None:
        """Run what is stale.

        Args:
            instance: what to bring up to date.
            log: receives each line that the work prints.

        Raises:
            InputError: an input of the user is wrong.
            RunnerError: the work failed.
        """


class LocalRunner:
    """Runs `dvc repro --single-item` in a child process on this machine.

    The environment of the child says who does the work (see `defect_core.graph.local.chosen_runner`). DVC itself runs
    on this machine.

    Args:
        project: the project.
        tries: how often to try while another DVC process has locked what this one needs; at least 1.
        wait_s: seconds before the second try; each wait is twice as long as the last, at most `MAX_WAIT_S`.
        environment: variables of the child in addition to those of this process.
    """

    def __init__(
        self, project: Project, tries: int = 5, wait_s: float = 4.0, environment: Mapping[str, str] | None = None
    ) -> None:
        self.project = project
        self.environment = dict(environment or {})
        self.tries = tries
        self.wait_s = wait_s

    def bring_up_to_date(self, instance: Instance, log: Log) -> None:
        """Run what is stale; see `Runner`."""
        if instance.stage.name == "ingest":
            # DVC takes no digest of a bucket.
            record_source(self.project, instance.key)
        dvcfile.sync(self.project)
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", instance.address]
        status, lines = self._run(command, log)
        for attempt in range(1, self.tries):
            if not status or not any(message in line for line in lines for message in _BUSY):
                break
            wait = min(MAX_WAIT_S, self.wait_s * 2 ** (attempt - 1))
            log(f"{instance.address}: another DVC process uses its files; next try in {wait:.0f} s")
            time.sleep(wait)
            status, lines = self._run(command, log)
        if not status:
            return
        for line in lines:
            if line.startswith(_INPUT_ERROR_PREFIX):
                raise InputError(line.removeprefix(_INPUT_ERROR_PREFIX))
        raise RunnerError("\n".join(lines) or f"dvc ended with status {status} and printed nothing")

    def _run(self, command: list[str], log: Log) -> tuple[int, list[str]]:
        """Run a child process and log each line of its two streams; return its status and its last lines."""
        environment = {**child_environment(self.project), **self.environment, "PYTHONUNBUFFERED": "1"}
        lines: deque[str] = deque(maxlen=LAST_LINES)
        child = subprocess.Popen(
            command, cwd=self.project.root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            for raw in child.stdout or ():
                line = _COLOUR.sub("", raw).rstrip()
                if line:
                    lines.append(line)
                    log(line)
            return child.wait(), list(lines)
        except BaseException:
            # A cancelled run must not leave training behind: stop the whole process group, DVC and its children.
            _stop_group(child)
            raise
        finally:
            if child.stdout is not None:
                child.stdout.close()


class RayRunner(LocalRunner):
    """Runs DVC on this machine, and the work as tasks of a Ray cluster: see `defect_core.graph.ray_runner`.

    Args:
        project: the project.
        address: `host:port` of the cluster's head; empty for processes on this machine.
    """

    def __init__(self, project: Project, address: str = "") -> None:
        super().__init__(project, environment={"DEFECTORY_RUNNER": "ray", "RAY_ADDRESS": address})


def make_runner(project: Project, name: str, address: str = "") -> Runner:
    """Return the runner of a name in `defect_core.graph.local.RUNNERS`.

    On Kubernetes a step already runs in its pod, so the local runner does the work.

    Args:
        project: the project.
        name: `local`, `ray` or `kubernetes`.
        address: see `RayRunner`.

    Raises:
        InputError: another name.
    """
    if name not in RUNNERS:
        raise InputError(f"runner: {name!r} is unknown; expected one of {', '.join(RUNNERS)}")
    if name == "ray":
        return RayRunner(project, address)
    return LocalRunner(project, environment={"DEFECTORY_RUNNER": name})


def _stop_group(child: subprocess.Popen[str]) -> None:
    """Terminate the process group of a child, and kill it after `STOP_TIMEOUT_S`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(STOP_TIMEOUT_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()
