"""Ray: a cluster of two workers makes the same bytes as one process, also when a worker is killed on the way."""

import importlib.util
import os
import signal
import threading
import time

import psutil
import pytest

from defect_core.errors import InputError
from defect_core.graph.instances import find_instance, run_in_process
from defect_core.graph.local import chosen_runner
from defect_core.project.paths import Project, folder_digest

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
def made(tmp_path_factory, images):
    """A project with a fitted generator, and the set that one process draws with it."""
    root = tmp_path_factory.mktemp("ray") / "project"
    images(root / "images/bolt", 0)
    (root / "params.yaml").write_text(PARAMS)
    project = Project(root)
    for name in ("ingest", "split", "finetune", "synthesize"):
        run_in_process(project, _instance(project, name))
    return project, folder_digest(project.path(SET))


@pytest.fixture
def project(made):
    """The project without the set."""
    made[0].path(SET).rename(made[0].path("set"))
    yield made[0]
    for path in sorted(made[0].path(SET).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if made[0].path(SET).is_dir():
        made[0].path(SET).rmdir()
    made[0].path("set").rename(made[0].path(SET))


def _instance(project, name):
    axes = {"product": "bolt"} | ({"generator": "crop-paste"} if name in ("finetune", "synthesize") else {})
    return find_instance(name, project.params, **axes)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one CPU each, in processes of their own, on loopback; where their folders lie."""
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback only, see defect_core.graph.ray
        patch.setenv("RAY_worker_niceness", "0")  # else workers wait behind whatever else this machine does
        patch.setenv("TMPDIR", str(scratch))
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        running = Cluster(initialize_head=True, head_node_args=node)
        try:
            patch.setenv("RAY_ADDRESS", running.address)
            patch.setenv("DEFECTORY_RUNNER", "ray")
            yield scratch
        finally:
            running.shutdown()


def test_two_workers_draw_the_same_bytes_as_one_process(made, project, cluster, capfd):
    chosen_runner()(project, _instance(project, "synthesize"))
    assert folder_digest(project.path(SET)) == made[1]
    said = capfd.readouterr().err
    workers = {line.split("drawn by ")[1] for line in said.splitlines() if "drawn by" in line}
    assert len(workers) == 2, said
    _only_loopback()


def test_a_worker_killed_on_the_way_changes_nothing(made, project, cluster, capfd):
    killed, done = [], threading.Event()
    killer = threading.Thread(target=_kill_one_at_work, args=(cluster, killed, done))
    killer.start()
    try:
        chosen_runner()(project, _instance(project, "synthesize"))
    finally:
        done.set()
        killer.join()
    assert killed, "no worker was killed"
    assert folder_digest(project.path(SET)) == made[1]
    assert f"process {killed[0]} on" not in capfd.readouterr().err, "the killed worker's shard came back"


def _kill_one_at_work(scratch, killed, done):
    """Kill the first worker that has drawn two batches of its shard."""
    while not done.is_set():
        for folder in scratch.glob("defectory-work-*"):
            if len(list(folder.glob("batch-*.json"))) >= 2:
                pid = int(folder.name.split("-")[2])
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.002)


def _only_loopback():
    """No process of the cluster listens on anything but this machine's own address."""
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_a_whole_instance_goes_out_and_its_files_come_back(project, cluster):
    folder = project.path("data/generator/bolt/crop-paste")
    before = folder_digest(folder)
    (folder / "left_over.txt").write_text("of an earlier run")
    chosen_runner()(project, _instance(project, "finetune"))
    assert folder_digest(folder) == before


def test_a_mistake_in_a_worker_is_the_users_line(project, cluster):
    table = project.path("data/split/bolt.parquet")
    kept = table.read_bytes()
    table.write_bytes(b"no table")
    try:
        with pytest.raises(InputError, match="bolt.parquet"):
            chosen_runner()(project, _instance(project, "finetune"))
    finally:
        table.write_bytes(kept)


def test_an_unknown_runner_and_a_cluster_that_is_not_there_are_mistakes(project, monkeypatch):
    monkeypatch.setenv("DEFECTORY_RUNNER", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="RAY_ADDRESS: nobody answers at 127.0.0.1:1; expected HOST:PORT"):
        chosen_runner()(project, _instance(project, "synthesize"))
    monkeypatch.setenv("DEFECTORY_RUNNER", "slurm")
    with pytest.raises(InputError, match="DEFECTORY_RUNNER: 'slurm' is unknown; expected one of local, ray"):
        chosen_runner()
