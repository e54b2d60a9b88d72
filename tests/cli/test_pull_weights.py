"""`defectory weights pull` against a server on this machine: progress of bytes, digests, resuming, a folder."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from defect_core.cli import pull_weights as module
from defect_core.cli.pull_weights import FILES, WeightsFile, missing_files, pull_weights
from defect_core.errors import InputError

CONTENT = bytes(range(256)) * 9000  # more than two blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]
FILE = WeightsFile("a test", f"http://unused/net-{DIGEST}.pth", "net.safetensors", 2)


class _Handler(BaseHTTPRequestHandler):
    content, ranges = CONTENT, []

    def do_GET(self):
        start = self.headers.get("Range")
        self.ranges.append(start)
        first = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
        if not self.path.endswith(FILE.name):
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first:])

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("DEFECTORY_WEIGHTS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(_Handler, "ranges", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/weights"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_from_a_mirror_and_no_longer_missing(server, cache, monkeypatch):
    assert missing_files([FILE]) == [FILE]
    monkeypatch.setenv(module.MIRROR_VARIABLE, server)
    assert pull_weights([FILE])[0].read_bytes() == CONTENT
    assert missing_files([FILE]) == [] and [path.name for path in cache.iterdir()] == [FILE.name]


def test_an_interrupted_download_continues_where_it_ended(server, cache):
    cache.mkdir()
    (cache / f"{FILE.name}.part").write_bytes(CONTENT[:1_000_000])
    assert pull_weights([FILE], server)[0].read_bytes() == CONTENT
    assert _Handler.ranges == ["bytes=1000000-"]


def test_a_damaged_file_is_refused_and_removed(server, cache, monkeypatch):
    monkeypatch.setattr(_Handler, "content", CONTENT[::-1])
    with pytest.raises(InputError, match=f"expected {DIGEST}: the file is damaged"):
        pull_weights([FILE], server)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:9/x", "{server}/none/", "nonsense"])
def test_a_failed_download_says_what_to_do(server, cache, mirror):
    other = WeightsFile("a test", "http://unused/other-00000000.pth", "other.safetensors", 2)
    with pytest.raises(InputError, match=r"the download failed .* --mirror, or a folder with --from") as caught:
        pull_weights([other], mirror.format(server=server))
    assert "\n" not in str(caught.value)


def test_a_folder_gives_either_format(cache, tmp_path):
    (tmp_path / FILE.alternative).write_bytes(b"weights")
    assert pull_weights([FILE], source=tmp_path) == [cache / FILE.alternative]
    assert missing_files([FILE]) == []
    with pytest.raises(InputError, match="has neither"):
        pull_weights([FILE], source=tmp_path / "empty")


def test_every_published_file_states_its_digest():
    assert all(len(file.digest) == 8 and file.url.startswith("https://") for file in FILES)
