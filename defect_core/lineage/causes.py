"""Why an instance's output differs between two revisions: the first differences upstream of it.

The source is dvc.lock alone. It records what every stage instance ran with: its settings and the digests of its inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from defect_core.data.config import NEVER_CHANGING_FILE, source_input
from defect_core.graph.instances import code_key
from defect_core.graph.table import STAGES
from defect_core.lineage.snapshot import Snapshot

_ORDER = {stage.name: number for number, stage in enumerate(STAGES)}


@dataclass(frozen=True, order=True)
class Cause:
    """A difference between two revisions that no other difference explains.

    Attributes:
        kind: `raw images`, `settings`, `code`, `stage` (only one revision has the instance), or `rerun` (an output
            differs although its inputs are equal).
        what: the folder, the dotted key, the code file, or the address of the instance.
        before: short text of the value before; "" without one.
        after: short text of the value after; "" without one.
    """

    kind: str
    what: str
    before: str = ""
    after: str = ""


class Lineage:
    """The graphs of two revisions, compared with each other.

    Attributes:
        sides: the revisions before and after.
        causes: returns the causes of an instance's different output, by its address.
    """

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.sides = (before, after)
        self.causes = cache(self._causes)

    def address_of(self, path: str) -> str | None:
        """Return the address of the instance that writes a file; None without one."""
        return next(iter(self._writers.get(path, ())), None)

    def pending(self) -> list[Cause]:
        """Return settings and code that differ between the revisions, but with which no recorded instance has run."""
        ran = {(cause.kind, cause.what) for address in self._addresses for cause in self._own(address)}
        before, after = (_leaves(side.params) for side in self.sides)
        causes = [
            Cause("settings", key, _text(before.get(key)), _text(after.get(key)))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key) and ("settings", key) not in ran
        ]
        causes = [cause for cause in causes if not any(k == "settings" and _is_part(cause.what, w) for k, w in ran)]
        files = {path for address in self._addresses for side in self.sides for path in self._code(side, address)}
        causes += [
            Cause("code", path) for path in sorted(files) if ("code", path) not in ran and self.changed_files(path)
        ]
        return causes

    def changed_files(self, folder: str) -> list[str]:
        """Return tracked files at or below a path whose content differs between the revisions."""
        return [path for path in self._changed_paths if path == folder or path.startswith(folder + "/")]

    @cached_property
    def _changed_paths(self) -> list[str]:
        before, after = (side.tree for side in self.sides)
        if not before or not after:
            return []
        return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))

    @cached_property
    def _addresses(self) -> list[str]:
        known = {address for side in self.sides for address in side.lock}
        return sorted(known, key=lambda address: (_ORDER.get(address.partition("@")[0], len(_ORDER)), address))

    @cached_property
    def _writers(self) -> dict[str, list[str]]:
        """Addresses of instances by the path they write and by every folder above it."""
        writers: dict[str, dict[str, None]] = {}
        for side in self.sides:
            for address, entry in side.lock.items():
                for output in entry.get("outs", []):
                    path = PurePosixPath(output["path"])
                    for name in (path, *path.parents[:-1]):
                        writers.setdefault(str(name), {})[address] = None
        return {path: list(addresses) for path, addresses in writers.items()}

    @cached_property
    def _written(self) -> set[str]:
        return {out["path"] for side in self.sides for entry in side.lock.values() for out in entry.get("outs", [])}

    def _causes(self, address: str) -> frozenset[Cause]:
        own = frozenset(self._own(address))
        causes = own.union(*(self.causes(other) for other in self._upstream(address)))
        if not causes and self._differs(address):
            return frozenset([Cause("rerun", address)])
        return causes

    def _upstream(self, address: str) -> set[str]:
        """Return the instances whose outputs an instance reads and whose outputs differ between the revisions."""
        before, after = (self._digests("deps", address, side) for side in (0, 1))
        upstream: set[str] = set()
        for name in before.keys() | after.keys():
            if before.get(name) == after.get(name):
                continue
            upstream.update(self._writers.get(name, ()))
            for above in PurePosixPath(name).parents[:-1]:
                if str(above) in self._written:
                    upstream.update(self._writers[str(above)])
        return {other for other in upstream - {address} if self._differs(other)}

    def _differs(self, address: str) -> bool:
        return self._digests("outs", address, 0) != self._digests("outs", address, 1)

    def _own(self, address: str) -> Iterator[Cause]:
        """Yield the differences of an instance itself: its settings, its code, and the raw images it reads."""
        entries = [entry for side in self.sides if (entry := side.lock.get(address)) is not None]
        if len(entries) < len(self.sides):
            if entries:
                yield Cause("stage", address, *("present" if address in side.lock else "absent" for side in self.sides))
            return
        settings = [_leaves(entry.get("params", {}).get("params.yaml", {})) for entry in entries]
        for key in sorted(settings[0].keys() | settings[1].keys()):
            values = [side.get(key) for side in settings]
            if values[0] != values[1]:
                yield Cause("settings", key, *(_text(value) for value in values))
        digests = [entry.get("params", {}).get("code.json", {}).get(code_key(address)) for entry in entries]
        if digests[0] != digests[1]:
            yield Cause("code", f"of {address.partition('@')[0]}", *(str(digest) for digest in digests))
        before, after = (self._digests("deps", address, side) for side in (0, 1))
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) == after.get(path) or self._is_written(path):
                continue
            product = address.partition("@")[2]
            if path in self._sources(product):
                yield Cause("raw images", f"data/raw/{product}")
            elif path in before and path in after:
                yield Cause("code", path)

    def _code(self, side: Snapshot, address: str) -> list[str]:
        paths = (dep["path"] for dep in side.lock.get(address, {}).get("deps", []))
        product = address.partition("@")[2]
        return [path for path in paths if not self._is_written(path) and path not in self._sources(product)]

    def _is_written(self, path: str) -> bool:
        above = PurePosixPath(path).parents[:-1]
        return path in self._writers or any(str(name) in self._written for name in above)

    def _sources(self, product: str) -> set[str]:
        """Return the paths of a product's raw images."""
        paths = set()
        for side in self.sides:
            source = (side.params.get("sources") or {}).get(product)
            if source is not None:
                path = (source or {}).get("path")
                paths |= {normpath(source_input(product, path)), normpath(path or NEVER_CHANGING_FILE)}
        return paths | {"data/README.md"}

    def _digests(self, kind: str, address: str, side: int) -> dict[str, str]:
        entry = self.sides[side].lock.get(address, {})
        return {normpath(item["path"]): item.get("md5", "") for item in entry.get(kind, [])}


def _leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key; a list is one value."""
    if isinstance(content, dict):
        leaves: dict[str, Any] = {}
        for name, value in content.items():
            leaves |= _leaves(value, f"{prefix}.{name}" if prefix else str(name))
        return leaves
    return {prefix: content} if prefix else {}


def _is_part(key: str, other: str) -> bool:
    return key.startswith(other + ".") or other.startswith(key + ".")


def _text(value: Any) -> str:
    return "default" if value is None else str(value)
