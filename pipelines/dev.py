"""`python -m pipelines.dev`: Dagster's UI for this project, on this machine only; Ctrl-C stops it."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from defect_core.errors import InputError
from defect_core.graph.local import child_environment
from defect_core.project.paths import Project

DAGSTER_YAML = """\
# Written by pipelines/dev.py. Runs, events and logs are stored beside this file; nothing leaves the machine.
telemetry: {enabled: false}
nux: {enabled: false}
# Without it a cancelled run never frees its slot in the pool.
run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 60}
concurrency:
  # The pools are `gpu` and `cpu`. One step at a time runs in each.
  pools: {granularity: op, default_limit: 1}
  runs: {max_concurrent_runs: 4}
"""
STOP_TIMEOUT_S = 40.0


def prepare_home(project: Project) -> Path:
    """Return DAGSTER_HOME of a project, with a dagster.yaml; an existing dagster.yaml is not changed."""
    home = project.state / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.is_file():
        config.write_text(DAGSTER_YAML, encoding="utf-8")
    return home


def serve(project: Project, port: int) -> int:
    """Run `dagster dev` until it ends or is interrupted; return its exit status.

    Raises:
        InputError: the project has no workspace.yaml.
    """
    if not project.path("workspace.yaml").is_file():
        raise InputError(f"{project.root}: no workspace.yaml; expected a project created by `defectory init`")
    environment = {
        **child_environment(project),
        "DAGSTER_HOME": str(prepare_home(project)),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    # A shell that starts this in the background ignores SIGINT, and children inherit that. Then nothing could stop it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    child = subprocess.Popen(
        [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        cwd=project.root,
        env=environment,
        start_new_session=True,
    )
    print(f"Dagster: http://127.0.0.1:{port} (in about 20 s); Ctrl-C stops it", file=sys.stderr, flush=True)
    try:
        return child.wait()
    except KeyboardInterrupt:
        print("Stopping. A stopped run continues when it is launched again.", file=sys.stderr, flush=True)
        _stop_group(child)
        return 0


def _stop_group(child: subprocess.Popen[bytes]) -> None:
    """Interrupt the server and its run workers, as a terminal would, and wait until all have ended.

    If only the server is interrupted, its run workers continue.
    """
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
        while time.monotonic() < deadline:
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> None:
    """Read the command line; exit with status 2 and one line for a mistake of the user."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.dev", description=__doc__)
    parser.add_argument("--port", type=int, default=3000)
    port = parser.parse_args().port
    try:
        sys.exit(serve(Project.find(), port))
    except InputError as error:
        print(f"defectory: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
