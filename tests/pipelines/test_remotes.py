"""Remotes under a real DVC: push, wipe, pull, the same hashes; in a folder, and in a real S3 server's bucket.

Raw images in a bucket: taken in like those of a folder; a changed object is noticed.
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

from defect_core.cli.scaffold import add_product, init_project
from defect_core.data.layouts import ingest
from defect_core.data.records import read_records, save_png
from defect_core.errors import InputError
from defect_core.graph import dvcfile
from defect_core.graph.instances import find_instance
from defect_core.graph.local import child_environment
from defect_core.project.paths import Project, folder_digest
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


KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "*"}


def test_a_bucket_as_remote(project, s3):
    _dvc(project, "remote", "add", "-d", "store", "s3://factory/cache")
    _dvc(project, "remote", "modify", "store", "endpointurl", s3)
    _push_wipe_pull(project, **{**os.environ, **KEYS})
    listed = urllib.request.urlopen(f"{s3}/factory?list-type=2", timeout=10).read().decode()
    assert listed.count("<Key>cache/files/md5/") == 5


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    """The server's bucket for this process; nothing of this machine's own keys and profiles."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()


def _ingest(project, product):
    said = []
    LocalRunner(project).bring_up_to_date(find_instance("ingest", project.params, product=product), said.append)
    return said


def test_raw_images_in_a_bucket(bucket, tmp_path, images):
    made = init_project(tmp_path / "factory")
    for seed, product in enumerate(("bolt", "nut")):
        images(tmp_path / product, seed)
        bucket.put(str(tmp_path / product), f"factory/raw/{product}", recursive=True)
        add_product(Project(made.root), product, f"s3://factory/raw/{product}", "auto", [], None)
    made = Project(made.root)
    for product in made.params.products:
        _ingest(made, product)
    ingest(tmp_path / "bolt", "bolt", tmp_path / "copy")
    table = made.path("data/raw/bolt/records.parquet")
    bolt = read_records(table)
    assert bolt and bolt == read_records(tmp_path / "copy/records.parquet")
    assert folder_digest(table.parent) == folder_digest(tmp_path / "copy")

    before = source_state(made, "bolt")
    images(tmp_path / "other", 7)
    bucket.put(str(tmp_path / "other/test/crack/002.png"), "factory/raw/bolt/test/crack/002.png")
    assert source_state(made, "bolt") != before
    stale = {cell.address for cell in stale_instances(made)}
    assert "ingest@bolt" in stale and "ingest@nut" not in stale
    _ingest(made, "bolt")
    changed = read_records(table)
    assert [r.image for r, old in zip(changed, bolt, strict=True) if r != old] == ["crack/002.png"]

    bucket.rm("factory/raw/nut", recursive=True)
    assert list(record_sources(made)) == ["nut"], "and the run that tries it says why"
    with pytest.raises(InputError, match=r"^s3://factory/raw/nut: nothing there; expected a bucket"):
        _ingest(made, "nut")


def test_mistakes_with_a_bucket_are_one_line(bucket, tmp_path, monkeypatch):
    made = init_project(tmp_path / "factory")
    for url, said in (
        ("s3://factory/nothing", "s3://factory/nothing: nothing there; expected a bucket"),
        ("s3://no-such-bucket/raw", "s3://no-such-bucket/raw: nothing there; expected a bucket"),
        ("s4://factory/raw", "s4://factory/raw: cannot be read: Protocol not known: s4"),
        ("ftp://anna:secret@host/raw", "a source's URL holds a password"),
    ):
        with pytest.raises(InputError) as error:
            add_product(made, "bolt", url, "auto", [], None)
        assert str(error.value).startswith(said) and "\n" not in str(error.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    type(bucket).clear_instance_cache()
    with pytest.raises(InputError, match=r"^s3://factory/raw: no credentials; expected some"):
        add_product(made, "bolt", "s3://factory/raw", "auto", [], None)
    assert Project(made.root).params.products == () and not made.path("data/source").exists()


def test_a_broken_file_is_named_by_its_url(tmp_path, images):
    import fsspec

    images(tmp_path / "bolt", 0)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "bolt"), "/raw/bolt", recursive=True)
    store.pipe("/raw/bolt/train/good/002.png", b"no image")
    made = init_project(tmp_path / "factory")
    with pytest.raises(InputError, match=r"^memory://raw/bolt/train/good/002.png: "):
        add_product(made, "bolt", "memory://raw/bolt", "auto", [], None)
    store.rm("/raw/bolt/train/good/002.png")
    assert add_product(made, "bolt", "memory://raw/bolt", "auto", [], None)["good"] == 5
    made = Project(made.root)
    record = made.path("data/source/bolt.json").read_bytes()
    assert record_sources(made) == {} and made.path("data/source/bolt.json").read_bytes() == record
    store.pipe("/raw/bolt/train/good/001.png", store.cat("/raw/bolt/train/good/001.png")[::-1])  # of the same size
    assert record_sources(made) == {}
    assert made.path("data/source/bolt.json").read_bytes() != record
