"""Why an instance's output differs between two revisions: the earliest things upstream of it that differ.

Read from dvc.lock alone, which holds what every stage really ran with: digests of what it read, and its settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from defect_core.graph.table import STAGES
from defect_core.lineage.snapshot import Snapshot
from defect_core.project.params import source_input

_ORDER = {stage.name: number for number, stage in enumerate(STAGES)}


@dataclass(frozen=True, order=True)
class Cause:
    """One thing that differs and that no other difference explains.

    Attributes:
        kind: `raw images`, `settings`, `code`, `stage` (one that only one side has), or `rerun`: an output differs
            although all that it was made from is the same.
        what: the folder, the dotted key, the code file, or the address.
        before, after: short texts; "" where there is none.
    """

    kind: str
    what: str
    before: str = ""
    after: str = ""


class Lineage:
    """Both revisions' graphs, laid over each other."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.sides = (before, after)
        self.causes = cache(self._causes)

    def address_of(self, path: str) -> str | None:
        """The instance that writes a file."""
        return next(iter(self._writers.get(path, ())), None)

    def pending(self) -> list[Cause]:
        """Settings and code that differ between the revisions, but that nothing on record has run with yet."""
        ran = {(cause.kind, cause.what) for address in self._addresses for cause in self._own(address)}
        before, after = (_leaves(side.params) for side in self.sides)
        found = [
            Cause("settings", key, _text(before.get(key)), _text(after.get(key)))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key) and ("settings", key) not in ran
        ]
        found = [cause for cause in found if not any(k == "settings" and _is_part(cause.what, w) for k, w in ran)]
        listed = {path for address in self._addresses for side in self.sides for path in self._code(side, address)}
        for path in sorted(listed):
            if ("code", path) not in ran and self.changed_files(path):
                found.append(Cause("code", path))
        return found

    def changed_files(self, folder: str) -> list[str]:
        """Tracked files at or below a path whose content differs between the revisions."""
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
        """Addresses by the path they write and by every folder above it."""
        found: dict[str, dict[str, None]] = {}
        for side in self.sides:
            for address, entry in side.lock.items():
                for output in entry.get("outs", []):
                    path = PurePosixPath(output["path"])
                    for name in (path, *path.parents[:-1]):
                        found.setdefault(str(name), {})[address] = None
        return {path: list(addresses) for path, addresses in found.items()}

    @cached_property
    def _written(self) -> set[str]:
        return {out["path"] for side in self.sides for entry in side.lock.values() for out in entry.get("outs", [])}

    def _causes(self, address: str) -> frozenset[Cause]:
        own = frozenset(self._own(address))
        found = own.union(*(self.causes(other) for other in self._upstream(address)))
        if not found and self._differs(address):
            return frozenset([Cause("rerun", address)])
        return found

    def _upstream(self, address: str) -> set[str]:
        """The instances that wrote what an instance read and what differs between the revisions."""
        before, after = (self._digests("deps", address, side) for side in (0, 1))
        found: set[str] = set()
        for name in before.keys() | after.keys():
            if before.get(name) == after.get(name):
                continue
            found.update(self._writers.get(name, ()))
            for above in PurePosixPath(name).parents[:-1]:
                if str(above) in self._written:
                    found.update(self._writers[str(above)])
        return {other for other in found - {address} if self._differs(other)}

    def _differs(self, address: str) -> bool:
        return self._digests("outs", address, 0) != self._digests("outs", address, 1)

    def _own(self, address: str) -> Iterator[Cause]:
        entries = [side.lock.get(address) for side in self.sides]
        if None in entries:
            if any(entries):
                yield Cause("stage", address, *("there" if entry else "not there" for entry in entries))
            return
        settings = [_leaves(entry.get("params", {}).get("params.yaml", {})) for entry in entries]
        for key in sorted(settings[0].keys() | settings[1].keys()):
            values = [side.get(key) for side in settings]
            if values[0] != values[1]:
                yield Cause("settings", key, *(_text(value) for value in values))
        digests = [entry.get("params", {}).get("code.json", {}).get(address) for entry in entries]
        if digests[0] != digests[1]:
            yield Cause("code", f"of {address.partition('@')[0]}", *(str(digest) for digest in digests))
        before, after = (self._digests("deps", address, side) for side in (0, 1))
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) == after.get(path) or self._is_written(path):
                continue
            product = address.partition("@")[2]
            if path in self._sources(product):
                # what was taken in differs, not only what lies beside it
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
        found = set()
        for side in self.sides:
            source = (side.params.get("sources") or {}).get(product)
            if source is not None:
                found.add(normpath(source_input(product, (source or {}).get("path"))))
        return found | {"data/README.md"}

    def _digests(self, kind: str, address: str, side: int) -> dict[str, str]:
        entry = self.sides[side].lock.get(address, {})
        return {normpath(item["path"]): item.get("md5", "") for item in entry.get(kind, [])}


def _leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists are values."""
    if isinstance(content, dict):
        found: dict[str, Any] = {}
        for name, value in content.items():
            found |= _leaves(value, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: content} if prefix else {}


def _is_part(key: str, other: str) -> bool:
    return key.startswith(other + ".") or other.startswith(key + ".")


def _text(value: Any) -> str:
    return "default" if value is None else str(value)
