"""The settings of the development server; the server is not started."""

import signal
import subprocess
import sys
import time

import dagster as dg
import psutil
import pytest

from defect_core.errors import InputError
from defect_core.project.paths import Project
from pipelines.dev import _stop_group, prepare_home, serve


@pytest.fixture
def bare(tmp_path):
    tmp_path.joinpath("params.yaml").write_text("products: []\n")
    return Project(tmp_path)


def test_the_home_is_untracked_and_an_existing_dagster_yaml_is_kept(bare):
    home = prepare_home(bare)
    assert home == bare.root / ".defectory/dagster"
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_home(bare)
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_dagster_loads_the_settings(bare):
    home = prepare_home(bare)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        limits = instance.get_concurrency_config()
        assert not instance.telemetry_enabled and not instance.nux_enabled
        assert instance.run_monitoring_enabled and instance.run_monitoring_settings["free_slots_after_run_end_seconds"]
        assert limits.pool_config.default_pool_limit == 1
        assert limits.run_queue_config.max_concurrent_runs == 4


def test_stopping_the_server_stops_its_run_workers():
    # A shell that starts the tests in the background ignores SIGINT, and children inherit that. `serve` does the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    grandchild = "import time; time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (workers := psutil.Process(child.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    _stop_group(child)
    assert child.returncode is not None
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert workers


def test_a_folder_without_workspace_yaml_raises_an_input_error(bare):
    with pytest.raises(InputError, match=r"workspace\.yaml"):
        serve(bare, 3999)
