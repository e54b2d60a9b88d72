"""Find a pretrained model by name, and compute the digest of its files."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from defect_core.errors import InputError

WEIGHTS_VARIABLE = "DEFECTORY_WEIGHTS"


def find_model(
    kind: str, name: str, embedded: Path, layout: str, *, allow_patterns: Sequence[str], ignore_patterns: Sequence[str]
) -> Path:
    """Return the folder of a model; a model of the Hugging Face hub is downloaded if necessary.

    Args:
        kind: name of the setting, for error messages.
        name: "embedded", a folder, or a hub name "OWNER/MODEL". A hub name is looked up in the folder of the
            environment variable DEFECTORY_WEIGHTS (as OWNER/MODEL, then as MODEL), in the hub's cache, and on the hub.
        embedded: the folder for the name "embedded".
        layout: the files that the folder must contain, for error messages.
        allow_patterns: glob patterns of the files to download from the hub.
        ignore_patterns: glob patterns of the files not to download.

    Raises:
        InputError: there is no model with this name, or the download fails.
    """
    if name == "embedded":
        return embedded
    if Path(name).is_dir():
        return Path(name)
    store = os.environ.get(WEIGHTS_VARIABLE)
    for candidate in (name, name.rsplit("/", 1)[-1]):
        if store and candidate and (Path(store) / candidate).is_dir():
            return Path(store) / candidate
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{kind} {name}: no such folder; expected 'embedded', a hub name, or a folder with {layout}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(allow_patterns), ignore_patterns=list(ignore_patterns)))
    except Exception as error:  # the hub raises many types: no connection, unknown name, gated model
        raise InputError(
            f"{kind} {name}: no such folder, not in {WEIGHTS_VARIABLE}, and the download from the hub failed "
            f"({type(error).__name__}); expected a folder with {layout}"
        ) from error


def digest_files(files: Iterable[Path], name_of: Callable[[Path], str]) -> str:
    """Return the sha256 (hex) over the names and the bytes of files, in the order of their paths.

    Args:
        files: the files; those that do not exist are skipped.
        name_of: returns the name of a file that enters the digest.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            with path.open("rb") as stream:
                total.update(f"{name_of(path)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
