"""`python -m benchmarks.grid`: times of DVC and Dagster on a project of 15 products and 7 arms that is up to date.

The outputs are small files that are committed to DVC; no stage runs. Measured are `dvc repro` with nothing to do, the
decision of the nightly run, the start of the UI, and the overhead of DVC and Dagster per stage.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PRODUCTS, ARMS = 15, 7
SERVER_TIMEOUT_S = 600
BOUNDS = {"dvc repro": 25.0, "nightly decision": 15.0, "UI start": 20.0, "overhead of a stage": 4.0}


def write_files(root: Path, products: int = PRODUCTS, arms: int = ARMS):
    """Create a project in which every instance is up to date: small files instead of results, committed to DVC."""
    import numpy as np

    from defect_core.cli.scaffold import init_project
    from defect_core.data.records import Record, save_png, write_records
    from defect_core.generators.registry import generator_capabilities, generator_names
    from defect_core.graph import dvcfile
    from defect_core.graph.local import child_environment
    from defect_core.project.paths import Project
    from pipelines.state import all_instances

    generators = [name for name in generator_names() if generator_capabilities(name).scope != "catalogue"][: arms - 2]
    project = init_project(root)
    names = [f"product{number:02d}" for number in range(products)]
    sources = "\n".join(f"  {name}: {{path: images/{name}, layout: mvtec}}" for name in names)
    project.path("params.yaml").write_text(
        f"seed: 0\nproducts: [{', '.join(names)}]\nsources:\n{sources}\ngenerators: [{', '.join(generators)}]\n"
        f"arms: [real_only, {', '.join(generators)}, mix]\nsynthesize: {{per_defect: 2}}\nsegment: {{seeds: [0]}}\n"
    )
    project = Project(root)
    if len(project.params.arms) != arms:
        raise ValueError(f"{arms} arms: the registry has too few generators; expected at most {len(generators) + 2}")
    rng = np.random.default_rng(0)
    for name in names:
        save_png(rng.integers(0, 255, (16, 16, 3), np.uint8), project.path(f"images/{name}/train/good/000.png"))
    dvcfile.sync(project)
    for cell in all_instances(project):
        for path in (*cell.outputs, *cell.metrics):
            file = project.path(path) if path.endswith((".json", ".parquet")) else project.path(path) / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            if cell.stage.name in ("ingest", "split"):
                records = [Record(cell.key, "good", "000.png", None, "train", cell.key, 16, 16)]
                write_records(records, file if cell.stage.name == "split" else file.with_name("records.parquet"))
            else:
                file.write_text(json.dumps(cell.address))
    command = [sys.executable, "-m", "dvc", "commit", "-f", "-q"]
    subprocess.run(command, cwd=root, env=child_environment(project), check=True)
    return project


@contextmanager
def grid():
    """Create the project in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_files(Path(folder) / "grid")


def repro_time(project) -> float:
    """Return the wall time in seconds of a `dvc repro` with nothing to do."""
    from defect_core.graph.local import child_environment

    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project.root, env=child_environment(project), capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if "Running stage" in process.stdout:
        raise RuntimeError(f"dvc repro: a stage ran; expected none\n{process.stdout}")
    return seconds


def decision_time(project) -> float:
    """Return the wall time in seconds in which the nightly run finds that nothing is stale."""
    from defect_core.project.paths import Project
    from pipelines.state import stale_instances

    start = time.monotonic()
    stale = stale_instances(Project(project.root))
    seconds = time.monotonic() - start
    if stale:
        raise RuntimeError(f"stale instances: {stale}; expected none")
    return seconds


def ui_time(project) -> float:
    """Return the wall time in seconds from `make dev` until the UI's server knows the assets."""
    from defect_core.graph.local import child_environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "pipelines.dev", "--port", str(port)],
        cwd=project.root, env=child_environment(project), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _knows_assets(port):
            if server.poll() is not None or time.monotonic() - start > SERVER_TIMEOUT_S:
                raise RuntimeError("the UI's server does not answer")
            time.sleep(0.2)
        return time.monotonic() - start
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(90)


def overhead_time(project) -> float:
    """Return the wall time in seconds of one materialisation without work, which is the overhead of a stage."""
    import dagster as dg

    from pipelines.assets import RUNNER, build_assets
    from pipelines.runner import LocalRunner

    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    assets = build_assets(project)
    with dg.DagsterInstance.ephemeral() as instance:
        start = time.monotonic()
        result = dg.materialize(
            assets, selection=["split"], partition_key=project.params.products[0],
            resources={RUNNER: LocalRunner(project)}, instance=instance,
        )  # fmt: skip
        seconds = time.monotonic() - start
    if not result.success:
        raise RuntimeError("the stage failed; expected success")
    return seconds


def _knows_assets(port: int) -> bool:
    query = json.dumps({"query": "{assetNodes {id}}"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", query, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return bool(json.load(response)["data"]["assetNodes"])
    except (OSError, KeyError, TypeError):
        return False


MEASURES: dict[str, Callable] = {
    "dvc repro": repro_time,
    "nightly decision": decision_time,
    "UI start": ui_time,
    "overhead of a stage": overhead_time,
}


@cache
def measure_all() -> dict[str, float]:
    """Return all times in seconds."""
    with grid() as project:
        return {name: measure(project) for name, measure in MEASURES.items()}


if __name__ == "__main__":
    for name, seconds in measure_all().items():
        print(f"{name + f', {PRODUCTS} products x {ARMS} arms':50} {seconds:6.2f} s (bound {BOUNDS[name]:g} s)")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
