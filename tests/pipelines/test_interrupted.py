"""Work that runs twice at once, in parallel, or is killed: a second run ends in the same state."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from defect_core.data.files import folder_digest
from defect_core.graph.instances import find_instance
from defect_core.graph.local import run_dvc
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.runner import LocalRunner, RunnerError

PAIRS = 48


def _bring_up_to_date(project, name, **axes):
    """Bring one instance up to date; return the lines that DVC and the work printed."""
    lines = []
    LocalRunner(project, wait_s=1.0).bring_up_to_date(find_instance(name, project.params, **axes), lines.append)
    return lines


def _count_runs(lines):
    return sum(line.startswith("> defectory stage") for line in lines)


def _copy(project, folder):
    shutil.copytree(project.root, folder, symlinks=True)
    return Project(folder)


def test_parallel_runs_execute_each_stage_once(project, tmp_path):
    """Two runs of the same product and one of another: each stage runs once, and dvc.lock records both."""
    alone = _copy(project, tmp_path / "alone")
    _bring_up_to_date(alone, "ingest", product="nut")
    for folder in ("data", ".dvc/cache"):  # DVC would restore the outputs from its cache.
        shutil.rmtree(project.path(folder))
    project.path("dvc.lock").unlink()
    with ThreadPoolExecutor(3) as threads:
        futures = [
            threads.submit(_bring_up_to_date, project, "ingest", product=product) for product in ("bolt", "nut", "nut")
        ]
        lines = [future.result() for future in futures]
    assert _count_runs(lines[0]) == 1 and _count_runs(lines[1]) + _count_runs(lines[2]) == 1
    recorded = read_lock(alone)
    assert read_lock(project) == {address: recorded[address] for address in ("ingest@bolt", "ingest@nut")}
    for product in ("bolt", "nut"):  # The lines of .gitignore beside them are in the order of the runs.
        raw = f"data/raw/{product}"
        assert folder_digest(project.path(raw)) == folder_digest(alone.path(raw))
    assert not _count_runs(_bring_up_to_date(project, "ingest", product="nut"))


def _kill_after_first_batch(project, name, **axes):
    """Kill DVC and its child processes once the work folder contains the first batch; return its files and times."""
    failures = []

    def work():
        try:
            _bring_up_to_date(project, name, **axes)
        except RunnerError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 120
    while not (batches := list(project.state.glob("work/*/*/batch-*.json"))):
        assert thread.is_alive() and time.monotonic() < deadline, "the work ended before it could be killed"
        time.sleep(0.01)
    processes = [child for child in psutil.Process().children(recursive=True) if _is_dvc_or_stage(child)]
    for process in processes:
        process.kill()
    thread.join(60)
    assert failures and processes
    return {path.name: path.stat().st_mtime_ns for path in batches}


def _is_dvc_or_stage(process):
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "dvc repro" in command or "defectory stage" in command


def test_a_killed_run_continues_and_ends_in_the_same_state(project, tmp_path):
    params = project.path("params.yaml")
    params.write_text(params.read_text().replace("per_defect: 2", f"per_defect: {PAIRS}, batch_size: 4"))
    project = Project(project.root)
    axes = {"product": "bolt", "generator": "crop-paste"}
    _bring_up_to_date(project, "finetune", **axes)
    uninterrupted = _copy(project, tmp_path / "uninterrupted")
    _bring_up_to_date(uninterrupted, "synthesize", **axes)

    batches = _kill_after_first_batch(project, "synthesize", **axes)
    assert "synthesize@bolt-crop-paste" not in read_lock(project)
    assert not project.path("data/synthetic/bolt/crop-paste/manifest.parquet").exists()
    lines = _bring_up_to_date(project, "synthesize", **axes)
    assert _count_runs(lines) == 1 and batches
    assert read_lock(project) == read_lock(uninterrupted)
    output = "data/synthetic/bolt/crop-paste"
    assert folder_digest(project.path(output)) == folder_digest(uninterrupted.path(output))
    assert not list(project.state.glob("work/data~synthetic*"))
    assert not _count_runs(_bring_up_to_date(project, "synthesize", **axes))


@pytest.mark.parametrize("has_output", [True, False])
def test_a_stage_without_an_entry_in_dvc_lock_runs_again(project, has_output):
    if not has_output:
        project.path("data/split/bolt.parquet").unlink()
    lock = project.path("dvc.lock").read_text()
    start = lock.index("  split@bolt:")
    project.path("dvc.lock").write_text(lock[:start])
    assert run_dvc(project, "repro", "--quiet", "--single-item", "split@bolt") == 0
    assert read_lock(project)["split@bolt"]["outs"][0]["md5"] in lock
