"""Real images that lie elsewhere: any URL that fsspec can read, such as `s3://bucket/prefix`.

Credentials and endpoints come from the environment (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, …) or fsspec's own
configuration, never from params.yaml.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from defect_core.errors import InputError

Listing = dict[str, tuple[int, str]]
_TAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5")
_CHUNK = 1 << 20


def is_url(path: str) -> bool:
    """Whether a source is read through fsspec."""
    return "://" in path


def list_source(url: str) -> Listing:
    """Size and tag of every file below a URL, by name relative to it, in the order of the names.

    The tag is the checksum that the store keeps (an S3 object's ETag, …); where it keeps none, the sha256 of the
    content, which is then read.

    Raises:
        InputError: the URL cannot be read, or nothing lies there.
    """
    with _one_line(url):
        files, root, found = _find(url)
        return {name: (int(info["size"]), _tag(files, f"{root}/{name}", info)) for name, info in found.items()}


def opened(path: str | None, folder: Path | None, scratch: Path) -> AbstractContextManager[Path | None]:
    """The folder to read a source from: `folder`, or a copy in `scratch` where `path` is a URL, see `fetched`."""
    return fetched(path, scratch) if path is not None and is_url(path) else nullcontext(folder)


@contextmanager
def fetched(url: str, scratch: Path) -> Iterator[Path]:
    """A copy of all files below a URL, in a folder of the URL's last name inside `scratch`, while the block lasts.

    Raises:
        InputError: as `list_source`; one raised in the block is raised again with the URL in place of the copy.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as parent:
        folder = Path(parent) / (url.rstrip("/").rpartition("/")[2] or "source")
        with _one_line(url):
            files, root, found = _find(url)
            targets = [folder / name for name in found]
            for name, target in zip(found, targets, strict=True):
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise InputError(f"{url}: holds a file named {name!r}; expected names without '..'")
                target.parent.mkdir(parents=True, exist_ok=True)
            files.get([f"{root}/{name}" for name in found], [str(target) for target in targets])
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(str(folder), url.rstrip("/"))) from None


def _find(url: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    """The file system, the folder in its words, and what lies below, by relative name."""
    import fsspec

    if urlsplit(url).password:
        raise InputError("a source's URL holds a password; expected it in the environment, for params.yaml is in git")
    files, root = fsspec.core.url_to_fs(url)
    root = root.rstrip("/")
    files.invalidate_cache()
    found = {
        path.removeprefix(root).lstrip("/"): info
        for path, info in sorted(files.find(root, detail=True).items())
        if info["type"] == "file" and not path.endswith("/")
    }
    found.pop("", None)  # the URL of a file lists that file
    if not found:
        raise FileNotFoundError
    return files, root, found


def _tag(files: Any, path: str, info: dict[str, Any]) -> str:
    for key in _TAGS:
        if info.get(key):
            return str(info[key]).strip('"')
    digest = hashlib.sha256()
    with files.open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Whatever a file system raises, said in one line."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{url}: nothing there; expected a bucket (or host) and a folder with images") from None
    except PermissionError:
        raise InputError(f"{url}: access refused; expected credentials that may list and read it") from None
    except ImportError as error:
        raise InputError(f"{url}: {error}; for s3: pip install 'defectory[s3]'") from None
    except Exception as error:  # each file system has exceptions of its own
        if type(error).__name__ == "NoCredentialsError":
            raise InputError(f"{url}: no credentials; expected some in the environment or a profile") from None
        said = " ".join(str(error).split())
        raise InputError(f"{url}: cannot be read: {said or type(error).__name__}") from None
