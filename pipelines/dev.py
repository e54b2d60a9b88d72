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
# Written by pipelines/dev.py. Runs, events and logs lie beside this file; nothing leaves the machine.
telemetry: {enabled: false}
nux: {enabled: false}
# without it a cancelled run keeps its place in its pool for ever
run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 60}
concurrency:
  # the pools are `gpu` and `cpu`: one piece of work at a time in each
  pools: {granularity: op, default_limit: 1}
  runs: {max_concurrent_runs: 4}
"""
STOP_S = 40.0


def prepare_home(project: Project) -> Path:
    """DAGSTER_HOME of a project, with its dagster.yaml; a dagster.yaml that is already there stays as it is."""
    home = project.state / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.is_file():
        config.write_text(DAGSTER_YAML, encoding="utf-8")
    return home


def serve(project: Project, port: int) -> int:
    """Run `dagster dev` until it ends or is interrupted; its exit status.

    Raises:
        InputError: the project has no workspace.yaml.
    """
    if not project.path("workspace.yaml").is_file():
        raise InputError(f"{project.root}: no workspace.yaml; expected a project laid down by `defectory init`")
    environment = {
        **child_environment(project),
        "DAGSTER_HOME": str(prepare_home(project)),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    # a shell that starts this in the background ignores SIGINT, and children inherit that: then nothing could stop it
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
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
        print(
            "Stopping; unfinished runs end here and go on from there when launched again", file=sys.stderr, flush=True
        )
        _stop_group(child)
        return 0


def _stop_group(child: subprocess.Popen) -> None:
    """Interrupt the server with its run workers, as a terminal would, and wait until the last of them is gone.

    Told alone, the server leaves its run workers at work behind it.
    """
    deadline = time.monotonic() + STOP_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
        while time.monotonic() < deadline:
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> None:
    """Read the command line; a mistake of the user is one line and exit status 2."""
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
