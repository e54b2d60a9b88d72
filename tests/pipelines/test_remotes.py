"""Remotes with a real DVC: push, delete, pull gives the same hashes, in a folder and in the bucket of an S3 server.

Raw images in a bucket are ingested like those in a folder, and a changed object is noticed.
"""

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

from defect_core.cli.add_product import add_product
from defect_core.cli.scaffold import init_project
from defect_core.data.files import folder_digest
from defect_core.data.layouts import ingest_source
from defect_core.data.records import record_rows, save_png
from defect_core.errors import InputError
from defect_core.graph import dvcfile
from defect_core.graph.instances import find_instance
from defect_core.graph.local import child_environment
from defect_core.project.paths import Project
from defect_core.project.sources import record_sources
from pipelines.runner import LocalRunner
from pipelines.sensors import source_state
from pipelines.state import stale_instances

PARAMS = """\
products: [bolt]
sources: {bolt: {path: images/bolt}}
generators: []
arms: [real_only]
"""
STAGES = ("ingest@bolt", "split@bolt")


def _dvc(project, *arguments, **variables):
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project.root, env={**child_environment(project), **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def project(tmp_path):
    """A project with two outputs in dvc.lock, a folder and a file."""
    project = init_project(tmp_path / "project")
    project.path("params.yaml").write_text(PARAMS)
    project = Project(project.root)
    dvcfile.sync(project)
    rng = np.random.default_rng(0)
    for number in range(3):
        for folder in ("images/bolt", "data/raw/bolt/good"):
            save_png(rng.integers(0, 255, (8, 8, 3), np.uint8), project.path(f"{folder}/{number}.png"))
    project.path("data/split").mkdir()
    project.path("data/split/bolt.parquet").write_bytes(b"a table")
    _dvc(project, "commit", "-f", *STAGES)
    return project


def _push_delete_pull(project, **variables):
    """Push, delete all files here, pull; check that the digests and dvc.lock are the same."""
    lock = project.path("dvc.lock").read_bytes()
    before = folder_digest(project.path("data"))
    _dvc(project, "push", *STAGES, **variables)
    shutil.rmtree(project.path(".dvc/cache"))
    shutil.rmtree(project.path("data/raw/bolt"))  # The .gitignore beside it is not in the cache.
    project.path("data/split/bolt.parquet").unlink()
    assert folder_digest(project.path("data")) != before
    _dvc(project, "pull", *STAGES, **variables)
    assert folder_digest(project.path("data")) == before
    assert project.path("dvc.lock").read_bytes() == lock


def test_a_folder_is_a_remote(project, tmp_path):
    _dvc(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    _push_delete_pull(project)
    assert len(list((tmp_path / "store/files/md5").glob("*/*"))) == 5, "three images, their listing, one file"


@pytest.fixture
def s3():
    """The address of moto's server, a process on loopback, with an empty bucket `factory`."""
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


KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "*"}


def test_a_bucket_is_a_remote(project, s3):
    _dvc(project, "remote", "add", "-d", "store", "s3://factory/cache")
    _dvc(project, "remote", "modify", "store", "endpointurl", s3)
    _push_delete_pull(project, **{**os.environ, **KEYS})
    listed = urllib.request.urlopen(f"{s3}/factory?list-type=2", timeout=10).read().decode()
    assert listed.count("<Key>cache/files/md5/") == 5


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    """The bucket of the server for this process, without the keys and profiles of this machine."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()


def _ingest(project, product):
    lines = []
    LocalRunner(project).bring_up_to_date(find_instance("ingest", project.params, product=product), lines.append)
    return lines


def test_raw_images_in_a_bucket_are_ingested(bucket, tmp_path, write_images):
    project = init_project(tmp_path / "factory")
    for seed, product in enumerate(("bolt", "nut")):
        write_images(tmp_path / product, seed)
        bucket.put(str(tmp_path / product), f"factory/raw/{product}", recursive=True)
        add_product(Project(project.root), product, f"s3://factory/raw/{product}", "auto", [], None)
    project = Project(project.root)
    for product in project.params.products:
        _ingest(project, product)
    ingest_source(tmp_path / "bolt", "bolt", tmp_path / "copy")
    table = project.path("data/raw/bolt/records.parquet")
    bolt = record_rows(table)
    assert bolt and bolt == record_rows(tmp_path / "copy/records.parquet")
    assert folder_digest(table.parent) == folder_digest(tmp_path / "copy")

    before = source_state(project, "bolt")
    write_images(tmp_path / "other", 7)
    bucket.put(str(tmp_path / "other/test/crack/002.png"), "factory/raw/bolt/test/crack/002.png")
    assert source_state(project, "bolt") != before
    stale = {cell.address for cell in stale_instances(project)}
    assert "ingest@bolt" in stale and "ingest@nut" not in stale
    _ingest(project, "bolt")
    changed = record_rows(table)
    assert [r.source for r in changed if r not in bolt] == ["test/crack/002.png"]

    bucket.rm("factory/raw/nut", recursive=True)
    assert list(record_sources(project)) == ["nut"], "the run reports the reason"
    with pytest.raises(InputError, match=r"^s3://factory/raw/nut: nothing there; expected a bucket"):
        _ingest(project, "nut")


def test_errors_of_a_bucket_are_one_line(bucket, tmp_path, monkeypatch):
    project = init_project(tmp_path / "factory")
    for url, message in (
        ("s3://factory/nothing", "s3://factory/nothing: nothing there; expected a bucket"),
        ("s3://no-such-bucket/raw", "s3://no-such-bucket/raw: nothing there; expected a bucket"),
        ("s4://factory/raw", "s4://factory/raw: cannot be read: Protocol not known: s4"),
        ("ftp://anna:secret@host/raw", "the URL of a source contains a password"),
    ):
        with pytest.raises(InputError) as error:
            add_product(project, "bolt", url, "auto", [], None)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    type(bucket).clear_instance_cache()
    with pytest.raises(InputError, match=r"^s3://factory/raw: no credentials; expected some"):
        add_product(project, "bolt", "s3://factory/raw", "auto", [], None)
    assert Project(project.root).params.products == () and not project.path("data/source").exists()


def test_a_broken_file_is_named_by_its_url(tmp_path, write_images):
    import fsspec

    write_images(tmp_path / "bolt", 0)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "bolt"), "/raw/bolt", recursive=True)
    store.pipe("/raw/bolt/train/good/002.png", b"not an image")
    project = init_project(tmp_path / "factory")
    with pytest.raises(InputError, match=r"^memory://raw/bolt/train/good/002.png: "):
        add_product(project, "bolt", "memory://raw/bolt", "auto", [], None)
    store.rm("/raw/bolt/train/good/002.png")
    assert add_product(project, "bolt", "memory://raw/bolt", "auto", [], None).counts["good"]["images"] == 5
    project = Project(project.root)
    record = project.path("data/source/bolt.json").read_bytes()
    assert record_sources(project) == {} and project.path("data/source/bolt.json").read_bytes() == record
    store.pipe("/raw/bolt/train/good/001.png", store.cat("/raw/bolt/train/good/001.png")[::-1])  # The size is the same.
    assert record_sources(project) == {}
    assert project.path("data/source/bolt.json").read_bytes() != record
