"""Running the graph: one instance in this process, or everything stale through DVC in child processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from defect_core import dvcfile
from defect_core.errors import InputError
from defect_core.params import BASELINE_ARM
from defect_core.project import Project
from defect_core.stages import STAGES, find_instance, instances, run_stage

TIMES_FILE = "times.json"
ERROR_FILE = "error.txt"


def run_one(project: Project, name: str, **axes: str | None) -> None:
    """Do one instance's work; the time it took is kept for the summary of `run_all`.

    A user's mistake is kept too: DVC hides a child's exit status, and `run_all` must pass it on.
    """
    instance = find_instance(name, project.params, **axes)
    try:
        seconds = run_stage(project, instance)
    except InputError as error:
        project.state.mkdir(exist_ok=True)
        (project.state / ERROR_FILE).write_text(str(error))
        raise
    times = _read_times(project)
    times[instance.address] = round(seconds, 1)
    project.state.mkdir(exist_ok=True)
    (project.state / TIMES_FILE).write_text(json.dumps(times))
    print(f"{instance.address}: done in {seconds:.1f} s", file=sys.stderr, flush=True)


def run_all(project: Project, products: list[str], generators: list[str]) -> int:
    """Bring the graph up to date, whole or for some products or generators; print leaderboard and times.

    Returns:
        The exit status: 0 done, 1 the work failed, 2 the input is wrong.
    """
    _check_sources(project)
    dvcfile.sync(project)
    targets = _targets(project, products, generators)
    for name in (TIMES_FILE, ERROR_FILE):
        (project.state / name).unlink(missing_ok=True)
    status = dvc(project, "repro", *targets)
    _print_times(project)
    error = project.state / ERROR_FILE
    if error.is_file():
        print(f"defectory: {error.read_text()}", file=sys.stderr)
        return 2
    if status:
        return 1
    if targets:  # the leaderboard is over everything, so a part of the graph leaves it as it was
        print("Up to date; `defectory run` without options brings the leaderboard and the report up to date too.")
        return 0
    from defect_core.report.table import print_leaderboard, read_leaderboard

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
            drawn_by = cell.fields.get("generator") or cell.fields.get("arm")
            asked = not products or cell.fields.get("product") in products
            if stage.grid and asked and (not generators or drawn_by in (*generators, BASELINE_ARM)):
                wanted.append(cell.address)
    return wanted


def _read_times(project: Project) -> dict[str, float]:
    path = project.state / TIMES_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _print_times(project: Project) -> None:
    times = _read_times(project)
    if not times:
        print("Nothing was stale.")
        return
    print("\nTime of each stage:")
    for address, seconds in times.items():
        print(f"  {address:50} {seconds:7.1f} s")
    print(f"  {'total':50} {sum(times.values()):7.1f} s\n")
