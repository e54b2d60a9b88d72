"""Remotes under a real DVC: push, wipe, pull, the same hashes; in a folder, and in a real S3 server's bucket."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from defect_core import dvcfile
from defect_core.data.records import save_png
from defect_core.factory import child_environment
from defect_core.project import Project, folder_digest
from defect_core.scaffold import init_project

PARAMS = """\
products: [bolt]
sources: {bolt: {path: images/bolt}}
generators: []
arms: [real_only]
"""
STAGES = ("ingest@bolt", "split@bolt")


def _dvc(project, *arguments, **variables):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project.root, env={**child_environment(project), **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    """Two outputs, a folder and a file, on DVC's record."""
    made = init_project(tmp_path / "project")
    made.path("params.yaml").write_text(PARAMS)
    made = Project(made.root)
    dvcfile.sync(made)
    rng = np.random.default_rng(0)
    for number in range(3):
        for folder in ("images/bolt", "data/raw/bolt/good"):
            save_png(rng.integers(0, 255, (8, 8, 3), np.uint8), made.path(f"{folder}/{number}.png"))
    made.path("data/split").mkdir()
    made.path("data/split/bolt.parquet").write_bytes(b"a table")
    _dvc(made, "commit", "-f", *STAGES)
    return made


def _push_wipe_pull(project, **variables):
    """Digests and lock before and after; nothing but the remote holds the files in between."""
    lock = project.path("dvc.lock").read_bytes()
    before = folder_digest(project.path("data"))
    _dvc(project, "push", *STAGES, **variables)
    shutil.rmtree(project.path(".dvc/cache"))
    shutil.rmtree(project.path("data/raw"))
    project.path("data/split/bolt.parquet").unlink()
    assert folder_digest(project.path("data")) != before
    _dvc(project, "pull", *STAGES, **variables)
    assert folder_digest(project.path("data")) == before
    assert project.path("dvc.lock").read_bytes() == lock


def test_a_folder_as_remote(project, tmp_path):
    _dvc(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    _push_wipe_pull(project)
    assert len(list((tmp_path / "store/files/md5").glob("*/*"))) == 5, "three images, their list, one file"


@pytest.fixture
def s3():
    """The address of moto's server, a real process on loopback, with an empty bucket `factory`."""
    for name in ("moto", "flask", "dvc_s3"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; pip install 'defectory[s3]' 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/factory", method="PUT"), timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def test_a_bucket_as_remote(project, s3):
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "*"}
    _dvc(project, "remote", "add", "-d", "store", "s3://factory/cache")
    _dvc(project, "remote", "modify", "store", "endpointurl", s3)
    _push_wipe_pull(project, **{**os.environ, **keys})
    listed = urllib.request.urlopen(f"{s3}/factory?list-type=2", timeout=10).read().decode()
    assert listed.count("<Key>cache/files/md5/") == 5
