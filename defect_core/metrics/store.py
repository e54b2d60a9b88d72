"""Cache of image features on disk by content, so that each network processes an image once.

The store of a project is the untracked folder `.defectory/features`. It may be deleted at any time. It has one folder
per network (name and digest of the weights) with safetensors files. Their metadata lists the image digests in the
order of the rows. LPIPS embeddings have megabytes per image, so the scores of a set are stored instead.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from defect_core.data.files import write_bytes
from defect_core.data.records import pixel_digest

Arrays: TypeAlias = dict[str, NDArray[Any]]
_MAX_FILES = 24  # more files are merged into one


class FeatureStore:
    """Features of images and results of sets, read from disk if they are stored.

    Attributes:
        folder: folder of the store. None stores nothing.
        computed: number of images that a network had to process.

    Args:
        folder: folder of the store. None stores nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.computed = 0

    def features(
        self, network: str, images: Sequence[NDArray[np.uint8]], extract: Callable[[NDArray[np.uint8]], Arrays]
    ) -> Arrays:
        """Returns the features of images as arrays `[N,...]` by name. Equal images are processed once.

        Args:
            network: name and digest of the network, its folder in the store.
            images: uint8 `[H,W,3]` of one size.
            extract: maps the images that are not stored, uint8 `[N,H,W,3]`, to arrays `[N,...]` by name.
        """
        digests = [pixel_digest(image) for image in images]
        stored = self._read(network, set(digests))
        missing = {d: image for d, image in zip(digests, images, strict=True) if d not in stored}
        if missing:
            self.computed += len(missing)
            rows = extract(np.stack(list(missing.values())))
            if self.folder is not None:
                self._write(self.folder / network, list(missing), rows)
            stored |= {d: {name: values[i] for name, values in rows.items()} for i, d in enumerate(missing)}
        names = stored[digests[0]] if digests else {}
        return {name: np.stack([stored[d][name] for d in digests]) for name in names}

    def result(self, kind: str, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Returns the stored result of the key, or computes and stores it.

        Args:
            kind: folder in the store.
            key: everything that decides the result, JSON-ready.
            compute: returns the result, JSON-ready.
        """
        if self.folder is None:
            return compute()
        text = json.dumps(dict(key), sort_keys=True)
        file = self.folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            value = compute()
            write_bytes(file, json.dumps(value).encode(), concurrent=True)
            return value

    def _read(self, network: str, digests: set[str]) -> dict[str, Arrays]:
        from safetensors import SafetensorError, safe_open

        rows: dict[str, Arrays] = {}
        for file in _files(self.folder / network) if self.folder is not None else []:
            try:
                with safe_open(file, "numpy") as stored:
                    listed = json.loads(stored.metadata()["images"])
                    selected = [(i, d) for i, d in enumerate(listed) if d in digests and d not in rows]
                    if selected:
                        columns = _columns(stored)
                        rows |= {d: {name: values[i] for name, values in columns.items()} for i, d in selected}
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):
                file.unlink(missing_ok=True)  # the features of a damaged file are computed again
        return rows

    def _write(self, folder: Path, digests: list[str], rows: Arrays) -> None:
        from safetensors.numpy import save

        files = _files(folder)
        if len(files) >= _MAX_FILES:
            old = _read_all(files)
            old |= {d: {name: values[i] for name, values in rows.items()} for i, d in enumerate(digests)}
            digests = list(old)
            rows = {name: np.stack([old[d][name] for d in digests]) for name in rows}
        else:
            files = []
        contiguous = {name: np.ascontiguousarray(values) for name, values in rows.items()}
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:24]
        target = folder / f"{name}.safetensors"
        write_bytes(target, save(contiguous, metadata={"images": json.dumps(digests)}), concurrent=True)
        for file in files:
            if file != target:
                file.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _read_all(files: list[Path]) -> dict[str, Arrays]:
    from safetensors import safe_open

    rows: dict[str, Arrays] = {}
    for file in files:
        with safe_open(file, "numpy") as stored:
            columns = _columns(stored)
            for i, digest in enumerate(json.loads(stored.metadata()["images"])):
                rows[digest] = {name: values[i] for name, values in columns.items()}
    return rows


def _columns(stored: Any) -> Arrays:
    return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - a safe_open file is no dict
