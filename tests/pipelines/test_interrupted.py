"""Work done twice at once, side by side, or killed in the middle: a rerun ends in the same state."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from defect_core.graph.instances import find_instance
from defect_core.graph.local import dvc
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project, folder_digest
from pipelines.runner import LocalRunner, RunnerError

PAIRS = 160


def _bring(project, name, **axes):
    """Bring one instance up to date; the lines that DVC and the work printed."""
    lines = []
    LocalRunner(project, wait_s=1.0).bring_up_to_date(find_instance(name, project.params, **axes), lines.append)
    return lines


def _worked(lines):
    return sum(line.startswith("> defectory stage") for line in lines)


def _copy(project, folder):
    shutil.copytree(project.root, folder, symlinks=True)
    return Project(folder)


def test_siblings_at_once_and_the_same_stage_twice(project, tmp_path):
    """Two nights that overlap, and two products side by side: each stage runs once, all of it is on record."""
    alone = _copy(project, tmp_path / "alone")
    for name in ("ingest", "split"):
        _bring(alone, name, product="nut")
    for kept in ("data", ".dvc/cache"):  # DVC remembers what it ran
        shutil.rmtree(project.path(kept))
    project.path("dvc.lock").unlink()
    for name in ("ingest", "split"):
        with ThreadPoolExecutor(3) as threads:
            asked = [threads.submit(_bring, project, name, product=product) for product in ("bolt", "nut", "nut")]
            said = [each.result() for each in asked]
        assert _worked(said[0]) == 1 and _worked(said[1]) + _worked(said[2]) == 1
    assert read_lock(project) == read_lock(alone)
    assert folder_digest(project.path("data/raw")) == folder_digest(alone.path("data/raw"))
    assert not _worked(_bring(project, "split", product="nut"))


def _kill_in_the_middle(project, name, **axes):
    """Kill DVC and the work below it, as a crash would, once the first of its results lie in the work folder."""
    failures = []

    def work():
        try:
            _bring(project, name, **axes)
        except RunnerError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 120
    while not (kept := list(project.state.glob("work/*/*/batch-*.json"))):
        assert thread.is_alive() and time.monotonic() < deadline, "the work ended before it could be killed"
        time.sleep(0.01)
    family = [child for child in psutil.Process().children(recursive=True) if _is_dvc_or_stage(child)]
    for process in family:
        process.kill()
    thread.join(60)
    assert failures and family
    return {path.name: path.stat().st_mtime_ns for path in kept}


def _is_dvc_or_stage(process):
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "dvc repro" in command or "defectory stage" in command


def test_a_killed_run_goes_on_and_ends_the_same(project, tmp_path):
    params = project.path("params.yaml")
    params.write_text(params.read_text().replace("per_defect: 2", f"per_defect: {PAIRS}, batch_size: 4"))
    project = Project(project.root)
    axes = {"product": "bolt", "generator": "crop-paste"}
    _bring(project, "finetune", **axes)
    whole = _copy(project, tmp_path / "whole")
    _bring(whole, "synthesize", **axes)

    kept = _kill_in_the_middle(project, "synthesize", **axes)
    assert "synthesize@bolt-crop-paste" not in read_lock(project)
    assert not project.path("data/synthetic/bolt/crop-paste/manifest.parquet").exists()
    lines = _bring(project, "synthesize", **axes)
    assert _worked(lines) == 1 and kept
    assert read_lock(project) == read_lock(whole)
    made = "data/synthetic/bolt/crop-paste"
    assert folder_digest(project.path(made)) == folder_digest(whole.path(made))
    assert not list(project.state.glob("work/data~synthetic*"))
    assert not _worked(_bring(project, "synthesize", **axes))


@pytest.mark.parametrize("there", [True, False])
def test_a_stage_killed_before_dvc_noted_it_runs_again(project, there):
    """Its output may lie there or not."""
    if not there:
        project.path("data/split/bolt.parquet").unlink()
    lock = project.path("dvc.lock").read_text()
    start = lock.index("  split@bolt:")
    project.path("dvc.lock").write_text(lock[:start])
    assert dvc(project, "repro", "--quiet", "--single-item", "split@bolt") == 0
    assert read_lock(project)["split@bolt"]["outs"][0]["md5"] in lock
