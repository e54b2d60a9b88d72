"""Real images at a URL that fsspec can read, such as `s3://bucket/prefix`.

Credentials and endpoints come from the environment (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...) or from fsspec's own
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
"""Size in bytes and tag of each file, by its name relative to the source."""
_TAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5")
_CHUNK = 1 << 20


def is_url(path: str) -> bool:
    """Return whether a source is read through fsspec."""
    return "://" in path


def list_source(url: str) -> Listing:
    """Return the size and the tag of every file below a URL, in the order of their names.

    The tag is the checksum of the store, such as the ETag of an S3 object. If the store has none, the content is read
    and its sha256 is the tag.

    Raises:
        InputError: the URL cannot be read or has no files.
    """
    with _short_errors(url):
        files, root, entries = _find(url)
        return {name: (int(info["size"]), _tag(files, f"{root}/{name}", info)) for name, info in entries.items()}


def open_source(path: str | None, folder: Path | None, scratch: Path) -> AbstractContextManager[Path | None]:
    """Return a context manager that yields the folder of a source.

    Args:
        path: path or URL of the source in params.yaml.
        folder: the folder to yield if `path` is no URL.
        scratch: where a URL is downloaded to, see `download_source`.
    """
    return download_source(path, scratch) if path is not None and is_url(path) else nullcontext(folder)


@contextmanager
def download_source(url: str, scratch: Path) -> Iterator[Path]:
    """Yield a temporary folder in `scratch` with a copy of all files below a URL; it is named like the URL's last part.

    Args:
        url: the source.
        scratch: parent of the temporary folder.

    Raises:
        InputError: as `list_source`. An InputError of the block is raised again with the URL in place of the folder.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as parent:
        folder = Path(parent) / (url.rstrip("/").rpartition("/")[2] or "source")
        with _short_errors(url):
            files, root, entries = _find(url)
            targets = [folder / name for name in entries]
            for name, target in zip(entries, targets, strict=True):
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise InputError(f"{url}: holds a file named {name!r}; expected names without '..'")
                target.parent.mkdir(parents=True, exist_ok=True)
            files.get([f"{root}/{name}" for name in entries], [str(target) for target in targets])
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(str(folder), url.rstrip("/"))) from None


def _find(url: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    """Return the file system, the folder in its notation, and the entries of all files below, by relative name."""
    import fsspec

    if urlsplit(url).password:
        raise InputError(
            "the URL of a source contains a password; expected it in the environment, because params.yaml is in git"
        )
    files, root = fsspec.core.url_to_fs(url)
    root = root.rstrip("/")
    files.invalidate_cache()
    entries = {
        path.removeprefix(root).lstrip("/"): info
        for path, info in sorted(files.find(root, detail=True).items())
        if info["type"] == "file" and not path.endswith("/")
    }
    entries.pop("", None)  # The URL of a single file lists this file under an empty name.
    if not entries:
        raise FileNotFoundError
    return files, root, entries


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
def _short_errors(url: str) -> Iterator[None]:
    """Raise the errors of a file system as an InputError of one line."""
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
    except Exception as error:  # Every fsspec implementation defines its exceptions itself.
        if type(error).__name__ == "NoCredentialsError":
            raise InputError(f"{url}: no credentials; expected some in the environment or a profile") from None
        message = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{url}: cannot be read: {message}") from None
