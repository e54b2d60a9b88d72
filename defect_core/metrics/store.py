"""Features of images, kept on disk by content, so that an image is seen by a network once.

A project's store is the untracked folder `.defectory/features`; it may be deleted at any time. It has one folder per
network (name and digest of the weights), in it safetensors files of rows in the order of the image digests that their
metadata lists. LPIPS embeddings are megabytes per image: of those not the features but a set's scores are kept.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.records import pixel_digest

Arrays = dict[str, NDArray[Any]]
_MOST_FILES = 24  # more are joined into one


class FeatureStore:
    """`features` of images and `result`s of sets, from disk where they are known.

    Args:
        folder: where to keep them; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.computed = 0  # images that a network had to see

    def features(
        self, network: str, images: Sequence[NDArray[np.uint8]], extract: Callable[[NDArray[np.uint8]], Arrays]
    ) -> Arrays:
        """Features of images `[H,W,3]` of one size, one row each, in their order; equal images are seen once.

        Args:
            network: name and digest of the network; its part of the store.
            extract: called with the images that are not known, uint8 `[N,H,W,3]`; gives `[N,...]` arrays by name.
        """
        digests = [pixel_digest(image) for image in images]
        wanted = set(digests)
        known = self._read(network, wanted)
        fresh = {d: image for d, image in zip(digests, images, strict=True) if d not in known}
        if fresh:
            self.computed += len(fresh)
            rows = extract(np.stack(list(fresh.values())))
            if self.folder is not None:
                self._write(network, list(fresh), rows)
            known |= {d: {name: values[i] for name, values in rows.items()} for i, d in enumerate(fresh)}
        names = known[digests[0]] if digests else {}
        return {name: np.stack([known[d][name] for d in digests]) for name in names}

    def result(self, what: str, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """`compute()`, which must be JSON-ready, or what it gave under the same key before."""
        if self.folder is None:
            return compute()
        text = json.dumps(dict(key), sort_keys=True)
        file = self.folder / what / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            value = compute()
            _replace(file, json.dumps(value).encode())
            return value

    def _read(self, network: str, wanted: set[str]) -> dict[str, Arrays]:
        from safetensors import SafetensorError, safe_open

        known: dict[str, Arrays] = {}
        for file in self._files(network):
            try:
                with safe_open(file, "numpy") as stored:
                    listed = json.loads(stored.metadata()["images"])
                    chosen = [(i, d) for i, d in enumerate(listed) if d in wanted and d not in known]
                    if chosen:
                        columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                        known |= {d: {name: values[i] for name, values in columns.items()} for i, d in chosen}
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):
                file.unlink(missing_ok=True)  # a damaged file is as good as none
        return known

    def _write(self, network: str, digests: list[str], rows: Arrays) -> None:
        files = self._files(network)
        if len(files) >= _MOST_FILES:
            old = self._all(files)
            old |= {d: {name: values[i] for name, values in rows.items()} for i, d in enumerate(digests)}
            digests = list(old)
            rows = {name: np.stack([old[d][name] for d in digests]) for name in rows}
        else:
            files = []
        from safetensors.numpy import save

        whole = {name: np.ascontiguousarray(values) for name, values in rows.items()}
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:24]
        target = self._place(network) / f"{name}.safetensors"
        _replace(target, save(whole, metadata={"images": json.dumps(digests)}))
        for file in files:
            if file != target:
                file.unlink(missing_ok=True)

    def _all(self, files: list[Path]) -> dict[str, Arrays]:
        from safetensors import safe_open

        rows: dict[str, Arrays] = {}
        for file in files:
            with safe_open(file, "numpy") as stored:
                columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                for i, digest in enumerate(json.loads(stored.metadata()["images"])):
                    rows[digest] = {name: values[i] for name, values in columns.items()}
        return rows

    def _files(self, network: str) -> list[Path]:
        if self.folder is None:
            return []
        return sorted(self._place(network).glob("*.safetensors"))

    def _place(self, network: str) -> Path:
        assert self.folder is not None
        return self.folder / network


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when two processes write it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    fresh.write_bytes(content)
    os.replace(fresh, file)
