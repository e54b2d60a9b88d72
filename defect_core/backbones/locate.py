"""Where a pretrained model lies, and the digest of its files."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from defect_core.errors import InputError


def find_model(
    kind: str, name: str, embedded: Path, layout: str, *, wanted: Sequence[str], unwanted: Sequence[str]
) -> Path:
    """The folder of a model that settings name.

    Args:
        kind: what the setting is called, for messages.
        name: `embedded`, a folder, or a hub name `OWNER/MODEL`, looked for in the folder that the environment variable
            DEFECTORY_WEIGHTS names (whole name, then its last part), in the hub's cache, and on the hub.
        embedded: the folder that `embedded` stands for.
        layout: what the folder should hold, for messages.
        wanted, unwanted: glob patterns of the files that are fetched from the hub, and of those that are not.

    Raises:
        InputError: nothing is found under this name.
    """
    if name == "embedded":
        return embedded
    if Path(name).is_dir():
        return Path(name)
    store = os.environ.get("DEFECTORY_WEIGHTS")
    for candidate in (name, name.rsplit("/", 1)[-1]):
        if store and candidate and (Path(store) / candidate).is_dir():
            return Path(store) / candidate
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{kind} {name}: no such folder; expected 'embedded', a hub name, or a folder with {layout}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted), ignore_patterns=list(unwanted)))
    except Exception as error:  # the hub raises many kinds, offline, unknown name, gated; the user needs one line
        raise InputError(
            f"{kind} {name}: not a folder, not under DEFECTORY_WEIGHTS, and the hub gave {type(error).__name__}; "
            f"expected a folder with {layout}"
        ) from error


def digest_files(files: Iterable[Path], named: Callable[[Path], str]) -> str:
    """Hex sha256 over the names, as `named` gives them, and the bytes of those files that exist, in order of path."""
    total = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            with path.open("rb") as stream:
                total.update(f"{named(path)} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
