"""Ray: a cluster of two workers writes the same bytes as one process, even if a worker is killed."""

import importlib.util
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from defect_core.data.files import folder_digest
from defect_core.errors import InputError
from defect_core.graph.instances import find_instance, run_in_process
from defect_core.graph.local import chosen_runner
from defect_core.project.paths import Project

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed; pip install 'defectory[ray]'", allow_module_level=True)

PARAMS = """\
products: [bolt]
sources: {bolt: {path: images/bolt}}
generators: [crop-paste]
arms: [real_only, crop-paste]
ingest: {min_per_defect: 3}
split: {policy: first_third}
synthesize: {per_defect: 75, batch_size: 2, min_change: 60}
"""
SET = "data/synthetic/bolt/crop-paste"


@pytest.fixture(scope="module")
def reference(tmp_path_factory, write_images):
    """A project with a trained generator and a synthetic set, and the digest of the set from one process."""
    root = tmp_path_factory.mktemp("ray") / "project"
    write_images(root / "images/bolt", 0)
    (root / "params.yaml").write_text(PARAMS)
    project = Project(root)
    for name in ("ingest", "split", "finetune", "synthesize"):
        run_in_process(project, _instance(project, name))
    return project, folder_digest(project.path(SET))


@pytest.fixture
def project(reference):
    """The project without the set."""
    project, _ = reference
    project.path(SET).rename(project.path("set"))
    yield project
    shutil.rmtree(project.path(SET), ignore_errors=True)
    project.path("set").rename(project.path(SET))


def _instance(project, name):
    axes = {"product": "bolt"} | ({"generator": "crop-paste"} if name in ("finetune", "synthesize") else {})
    return find_instance(name, project.params, **axes)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two workers with one CPU each, on loopback; the fixture is the folder of their work folders."""
    # Ray's socket is in this folder, and the path of a socket has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        scratch = Path(folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Loopback only, see defect_core.graph.ray_runner
        patch.setenv("RAY_worker_niceness", "0")  # Else other processes slow the workers.
        patch.setenv("TMPDIR", str(scratch))
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            patch.setenv("RAY_ADDRESS", cluster.address)
            patch.setenv("DEFECTORY_RUNNER", "ray")
            yield scratch
        finally:
            cluster.shutdown()


def test_two_workers_write_the_same_bytes_as_one_process(reference, project, cluster, caplog):
    caplog.set_level(logging.INFO)
    chosen_runner()(project, _instance(project, "synthesize"))
    assert folder_digest(project.path(SET)) == reference[1]
    workers = {message.split("sampled by ")[1] for message in caplog.messages if "sampled by" in message}
    assert len(workers) == 2, caplog.text
    _check_loopback()


def test_a_killed_worker_changes_no_byte(reference, project, cluster, caplog):
    caplog.set_level(logging.INFO)
    killed, done = [], threading.Event()
    killer = threading.Thread(target=_kill_one_worker, args=(cluster, killed, done))
    killer.start()
    try:
        chosen_runner()(project, _instance(project, "synthesize"))
    finally:
        done.set()
        killer.join()
    assert killed, "no worker was killed"
    assert folder_digest(project.path(SET)) == reference[1]
    assert f"process {killed[0]} on" not in caplog.text, "the shard of the killed worker must be sampled by another"


def _kill_one_worker(scratch, killed, done):
    """Kill the first worker that has sampled two batches of its shard."""
    while not done.is_set():
        for folder in scratch.glob("defectory-work-*"):
            if len(list(folder.glob("batch-*.json"))) >= 2:
                pid = int(folder.name.split("-")[2])
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.002)


def _check_loopback():
    """Check that the processes of the cluster listen on loopback only."""
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_an_instance_runs_on_a_worker_and_its_files_are_installed(project, cluster):
    folder = project.path("data/generator/bolt/crop-paste")
    before = folder_digest(folder)
    (folder / "left_over.txt").write_text("from an earlier run")
    chosen_runner()(project, _instance(project, "finetune"))
    assert folder_digest(folder) == before


def test_an_input_error_in_a_worker_is_raised_here(project, cluster):
    table = project.path("data/split/bolt.parquet")
    content = table.read_bytes()
    table.write_bytes(b"not a table")
    try:
        with pytest.raises(InputError, match=r"bolt\.parquet"):
            chosen_runner()(project, _instance(project, "finetune"))
    finally:
        table.write_bytes(content)


def test_an_unknown_runner_and_a_missing_cluster_raise_input_errors(project, monkeypatch):
    monkeypatch.setenv("DEFECTORY_RUNNER", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS: no answer at 127\.0\.0\.1:1; expected HOST:PORT"):
        chosen_runner()(project, _instance(project, "synthesize"))
    monkeypatch.setenv("DEFECTORY_RUNNER", "slurm")
    with pytest.raises(InputError, match="DEFECTORY_RUNNER: 'slurm' is unknown; expected one of local, ray"):
        chosen_runner()
