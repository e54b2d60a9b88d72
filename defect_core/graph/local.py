"""Running the graph: one instance in this process, or everything stale through DVC in child processes."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from defect_core.data.files import write_json
from defect_core.errors import InputError, suggest
from defect_core.graph.dvcfile import sync
from defect_core.graph.instances import Instance, find_instance, instances, run_in_process, run_stage
from defect_core.graph.table import STAGES
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.params import Params
from defect_core.project.paths import Project
from defect_core.project.sources import record_sources

logger = logging.getLogger(__name__)

COSTS = "costs"
ERROR_FILE = "error.txt"
RUNNERS = ("local", "ray", "kubernetes")


def run_one(project: Project, name: str, **axes: str | None) -> None:
    """Do the work of one instance, and record its cost outside of what is tracked (see `read_cost`).

    An InputError is recorded too: DVC hides the exit status of a child process, and `reproduce` must pass it on.
    """
    instance = find_instance(name, project.params, **axes)
    try:
        seconds = run_stage(project, instance, chosen_runner())
    except InputError as error:
        project.state.mkdir(exist_ok=True)
        (project.state / ERROR_FILE).write_text(str(error))
        raise
    # One file per instance, because two instances may end at the same moment.
    write_json(_cost_file(project, instance.address), {"seconds": round(seconds, 1), "device": _device_name()})
    logger.info("%s: done in %.1f s", instance.address, seconds)


def read_cost(project: Project, address: str) -> dict[str, Any] | None:
    """Return `seconds` and `device` of the last run of an instance on this machine; None if it never ran here."""
    path = _cost_file(project, address)
    return _load_cost(path)


def costs_since(project: Project, since: int) -> dict[str, float]:
    """Return the seconds of all instances that ran since a time in nanoseconds, by address, in the order they ended."""
    files = [path for path in (project.state / COSTS).glob("*.json") if path.stat().st_mtime_ns >= since]
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    costs = {path.stem: _load_cost(path) for path in files}
    return {address: cost["seconds"] for address, cost in costs.items() if cost is not None}


def chosen_runner() -> Callable[[Project, Instance], None]:
    """Return the function that does a stage's work, by DEFECTORY_RUNNER.

    `local` is this process, `ray` the cluster at RAY_ADDRESS. `kubernetes` is this process too, because Dagster has
    given it a separate pod.

    Raises:
        InputError: another name.
    """
    name = os.environ.get("DEFECTORY_RUNNER") or "local"
    if name not in RUNNERS:
        raise InputError(f"DEFECTORY_RUNNER: {name!r} is unknown; {suggest(name, RUNNERS)}")
    if name != "ray":
        return run_in_process
    from defect_core.graph.ray_runner import run_on_ray

    return run_on_ray


def reproduce(project: Project, targets: Sequence[str] = ()) -> int:
    """Bring the graph, or some instances of it, up to date with `dvc repro`.

    Args:
        project: the project.
        targets: addresses of instances; none: all.

    Returns:
        The exit status of DVC.

    Raises:
        InputError: a source is missing or cannot be read, or a stage raised one.
    """
    _check_sources(project)
    sync(project)
    error = project.state / ERROR_FILE
    error.unlink(missing_ok=True)
    status = run_dvc(project, "repro", *targets)
    if error.is_file():
        raise InputError(error.read_text())
    return status


def select_instances(params: Params, products: Sequence[str], generators: Sequence[str]) -> list[str]:
    """Return the addresses of all instances of some products and generators; none if neither is given.

    Raises:
        InputError: an unknown product or generator.
    """
    check_known(params, products, generators)
    if not products and not generators:
        return []
    selected = []
    for stage in STAGES:
        for cell in instances(stage, params):
            arm = params.arm(cell.fields["arm"]).base if "arm" in cell.fields else None
            generator = cell.fields.get("generator") or arm
            has_product = not products or cell.fields.get("product") in products
            if stage.grid and has_product and (not generators or generator in (*generators, BASELINE_ARM)):
                selected.append(cell.address)
    return selected


def check_known(params: Params, products: Sequence[str], generators: Sequence[str]) -> None:
    """Raise InputError for a product or generator that is not in params.yaml."""
    for names, known, axis in (
        (products, params.products, "product"),
        (generators, params.generators, "generator"),
    ):
        for name in names:
            if name not in known:
                raise InputError(f"{axis} {name!r} is not in params.yaml; {suggest(name, known)}")


def run_dvc(project: Project, *arguments: str) -> int:
    """Call DVC in the project, so that its stages find the same Python; return its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=project.root, env=child_environment(project), check=False
    ).returncode


def child_environment(project: Project) -> dict[str, str]:
    """Return the environment of child processes: scripts of this Python first, this project, no telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DEFECTORY_PROJECT": str(project.root), "DVC_NO_ANALYTICS": "1"}


def _check_sources(project: Project) -> None:
    for product in project.params.products:
        source = project.source_path(product)
        if source is not None and not source.exists():
            path = project.params.sources[product].path
            raise InputError(f"params.yaml: sources.{product}.path: {path} does not exist; expected a folder of images")
    for product, problem in record_sources(project).items():
        raise InputError(f"params.yaml: sources.{product}.path: {problem}")


def _load_cost(path: Path) -> dict[str, Any] | None:
    """Return a recorded cost; None without a record, or with a damaged one, which only an estimate would miss."""
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        return {"device": str(cost["device"]), "seconds": float(cost["seconds"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _cost_file(project: Project, address: str) -> Path:
    return project.state / COSTS / f"{address}.json"


def _device_name() -> str:
    """Return the name of the accelerator that was used, or `cpu`."""
    torch = sys.modules.get("torch")  # Work that did not import torch used no accelerator.
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
