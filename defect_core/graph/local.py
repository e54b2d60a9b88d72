"""Running the graph: one instance in this process, or everything stale through DVC in child processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.graph import dvcfile
from defect_core.graph.instances import Instance, find_instance, instances, run_in_process, run_stage
from defect_core.graph.table import STAGES
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project, write_json
from defect_core.project.sources import record_sources

COSTS = "costs"
ERROR_FILE = "error.txt"
RUNNERS = ("local", "ray", "kubernetes")


def run_one(project: Project, name: str, **axes: str | None) -> None:
    """Do one instance's work; what it cost is kept, outside what is tracked: see `read_cost`.

    A user's mistake is kept too: DVC hides a child's exit status, and `run_all` must pass it on.
    """
    instance = find_instance(name, project.params, **axes)
    try:
        seconds = run_stage(project, instance, chosen_runner())
    except InputError as error:
        project.state.mkdir(exist_ok=True)
        (project.state / ERROR_FILE).write_text(str(error))
        raise
    # a file for each instance: two of them may end at the same moment
    write_json(_cost_file(project, instance.address), {"seconds": round(seconds, 1), "device": _device()})
    print(f"{instance.address}: done in {seconds:.1f} s", file=sys.stderr, flush=True)


def read_cost(project: Project, address: str) -> dict[str, Any] | None:
    """`seconds` and `device` of the last time an instance's work was done on this machine; None where it never was."""
    path = _cost_file(project, address)
    return json.loads(path.read_text()) if path.is_file() else None


def chosen_runner() -> Callable[[Project, Instance], None]:
    """Who does a stage's work, by DEFECTORY_RUNNER: `local`, this process; `ray`, the cluster that RAY_ADDRESS names;
    `kubernetes`, this process too, for Dagster has given it a pod of its own.

    Raises:
        InputError: another name.
    """
    name = os.environ.get("DEFECTORY_RUNNER") or "local"
    if name not in RUNNERS:
        raise InputError(f"DEFECTORY_RUNNER: {name!r} is unknown; expected one of {', '.join(RUNNERS)}")
    if name != "ray":
        return run_in_process
    from defect_core.graph.ray import run_on_ray

    return run_on_ray


def run_all(project: Project, products: list[str], generators: list[str]) -> int:
    """Bring the graph up to date, whole or for some products or generators; print leaderboard and times.

    Returns:
        The exit status: 0 done, 1 the work failed, 2 the input is wrong.
    """
    _check_sources(project)
    dvcfile.sync(project)
    targets = _targets(project, products, generators)
    (project.state / ERROR_FILE).unlink(missing_ok=True)
    start = time.time_ns()
    status = dvc(project, "repro", *targets)
    _print_times(project, start, nothing="Nothing was stale." if not status else "")
    error = project.state / ERROR_FILE
    if error.is_file():
        print(f"defectory: {error.read_text()}", file=sys.stderr)
        return 2
    if status:
        return 1
    if targets:  # the leaderboard is over everything, so a part of the graph leaves it as it was
        print("Up to date; `defectory run` without options brings the leaderboard and the report up to date too.")
        return 0
    from defect_core.report.leaderboard import read_leaderboard
    from defect_core.report.table import print_leaderboard

    print_leaderboard(read_leaderboard(project))
    report = project.path("report/index.html")
    print(f"The report: {os.path.relpath(report)}    The graph: make dev, or dagster dev -w workspace.yaml")
    return 0


def dvc(project: Project, *arguments: str) -> int:
    """Call DVC in the project, so that its stages find the same Python; returns its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=project.root, env=child_environment(project), check=False
    ).returncode


def child_environment(project: Project) -> dict[str, str]:
    """The environment of child processes: this Python's scripts first, this project, no telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DEFECTORY_PROJECT": str(project.root), "DVC_NO_ANALYTICS": "1"}


def _check_sources(project: Project) -> None:
    for product in project.params.products:
        source = project.source_path(product)
        if source is not None and not source.exists():
            given = project.params.sources[product].path
            raise InputError(
                f"params.yaml: sources.{product}.path: {given} does not exist; expected a folder of images"
            )
    for product, why in record_sources(project).items():
        raise InputError(f"params.yaml: sources.{product}.path: {why}")


def _targets(project: Project, products: list[str], generators: list[str]) -> list[str]:
    params = project.params
    for given, known, what in ((products, params.products, "product"), (generators, params.generators, "generator")):
        for name in given:
            if name not in known:
                raise InputError(f"{what} {name!r} is not in params.yaml; expected one of {', '.join(known)}")
    if not products and not generators:
        return []
    wanted = []
    for stage in STAGES:
        for cell in instances(stage, params):
            arm = params.arm(cell.fields["arm"]).base if "arm" in cell.fields else None
            drawn_by = cell.fields.get("generator") or arm
            asked = not products or cell.fields.get("product") in products
            if stage.grid and asked and (not generators or drawn_by in (*generators, BASELINE_ARM)):
                wanted.append(cell.address)
    return wanted


def _cost_file(project: Project, address: str) -> Path:
    return project.state / COSTS / f"{address}.json"


def _device() -> str:
    """What the work ran on: an accelerator's name, or `cpu`."""
    torch = sys.modules.get("torch")  # work that did not load it ran on no accelerator
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _print_times(project: Project, since: int, nothing: str) -> None:
    """The times of what was run since then, in nanoseconds of the clock; `nothing` where nothing was."""
    files = [path for path in (project.state / COSTS).glob("*.json") if path.stat().st_mtime_ns >= since]
    if not files:
        print(nothing)
        return
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    times = {path.stem: json.loads(path.read_text())["seconds"] for path in files}
    print("\nTime of each stage:")
    for address, seconds in times.items():
        print(f"  {address:50} {seconds:7.1f} s")
    print(f"  {'total':50} {sum(times.values()):7.1f} s\n")
