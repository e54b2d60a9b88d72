"""Who brings a stage instance up to date: here a child process on this machine, elsewhere whatever fits the protocol.

DVC decides whether anything has to run at all; the child gives its accelerator memory back when it ends.
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

KEPT_LINES = 20
GRACE_S = 10.0
_BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
_MISTAKE = "defectory: "
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RunnerError(Exception):
    """The work failed; the message is the child's last lines."""


class Runner(Protocol):
    """Brings one stage instance up to date, and runs nothing where it is."""

    def bring_up_to_date(self, instance: Instance, log: Log) -> None:
        """Do what is stale, calling `log` for each line the work prints.

        Raises:
            InputError: something the user gave is wrong.
            RunnerError: the work failed.
        """


class LocalRunner:
    """Runs `dvc repro --single-item` in a child process on this machine.

    The child, and so whoever runs DVC by hand, learns from the environment who does the work: see
    `defect_core.graph.local.chosen_runner`. DVC's own share stays on this machine.

    Args:
        project: where.
        tries: how often to try while another DVC process holds what this one needs.
        wait_s: seconds before the second try; each further wait is twice as long, at most a minute.
        environment: variables of the child beside those of this process.
    """

    def __init__(
        self, project: Project, tries: int = 5, wait_s: float = 4.0, environment: Mapping[str, str] | None = None
    ) -> None:
        self.project = project
        self.environment = dict(environment or {})
        self.tries = tries
        self.wait_s = wait_s

    def bring_up_to_date(self, instance: Instance, log: Log) -> None:
        if instance.stage.name == "ingest":
            # DVC does not look into a bucket
            record_source(self.project, instance.key)
        dvcfile.sync(self.project)
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", instance.address]
        for attempt in range(1, self.tries + 1):
            status, lines = self._run(command, log)
            if not status:
                return
            if attempt == self.tries or not any(sign in line for line in lines for sign in _BUSY):
                break
            wait = min(60.0, self.wait_s * 2 ** (attempt - 1))
            log(f"{instance.address}: another DVC process is at work on this; again in {wait:.0f} s")
            time.sleep(wait)
        for line in lines:
            if line.startswith(_MISTAKE):
                raise InputError(line.removeprefix(_MISTAKE))
        raise RunnerError("\n".join(lines) or f"dvc ended with status {status} and said nothing")

    def _run(self, command: list[str], log: Log) -> tuple[int, list[str]]:
        """Status and last lines of a child; both of its streams go to `log` as they come."""
        environment = {**child_environment(self.project), **self.environment, "PYTHONUNBUFFERED": "1"}
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        child = subprocess.Popen(
            command, cwd=self.project.root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            for raw in child.stdout:
                line = _COLOUR.sub("", raw).rstrip()
                if line:
                    lines.append(line)
                    log(line)
            return child.wait(), list(lines)
        except BaseException:
            # a cancelled run must not leave training behind, so the whole group goes, DVC and its children
            _stop_group(child)
            raise
        finally:
            child.stdout.close()


class RayRunner(LocalRunner):
    """Runs DVC here, and the work as tasks of a Ray cluster: see `defect_core.graph.ray`.

    Args:
        project: where.
        address: `host:port` of the cluster's head; "" for processes of this machine.
    """

    def __init__(self, project: Project, address: str = "") -> None:
        super().__init__(project, environment={"DEFECTORY_RUNNER": "ray", "RAY_ADDRESS": address})


def make_runner(project: Project, name: str, address: str = "") -> Runner:
    """The runner of that name: one of `defect_core.graph.local.RUNNERS`. On Kubernetes a step has a pod of its own already.

    Raises:
        InputError: another name.
    """
    if name not in RUNNERS:
        raise InputError(f"runner: {name!r} is unknown; expected one of {', '.join(RUNNERS)}")
    return (
        RayRunner(project, address) if name == "ray" else LocalRunner(project, environment={"DEFECTORY_RUNNER": name})
    )


def _stop_group(child: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
            child.wait(GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()
