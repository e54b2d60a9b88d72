"""What Dagster is told of an instance that is up to date: one materialisation and its checks, whoever did the work.

DVC's hash of the output is the data version. A digest of the whole entry in dvc.lock goes along as a tag, so that work
done by `dvc repro` or `defectory run` is told apart from what Dagster knows already, and is reported once.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg

from defect_core.graph.code import code_digest, code_root
from defect_core.graph.dvcfile import CODE_FILE
from defect_core.graph.instances import Instance, active_stages, instances
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.checks import check_results
from pipelines.metadata import cost, describe
from pipelines.partitions import partition_key
from pipelines.state import code_version, data_version, reads_from

LOCK_TAG = "defectory/lock_entry"
VERSION_TAG = "dagster/data_version"
Lock = Mapping[str, Any]


def lock_tag(instance: Instance, lock: Lock) -> str:
    """A digest of an instance's entry in dvc.lock: other inputs, settings, code or outputs give another one."""
    return hashlib.sha256(json.dumps(lock[instance.address], sort_keys=True).encode()).hexdigest()[:16]


def facts(project: Project, instance: Instance) -> dict[str, Any]:
    """The metadata of an instance that is up to date, without what only the caller knows."""
    return {
        **describe(project, instance),
        "dvc": dg.MetadataValue.text(instance.address),
        "files": dg.MetadataValue.text(", ".join(instance.outputs + instance.metrics)),
        **cost(project, instance),
    }


def evaluations(project: Project, instance: Instance) -> list[dg.AssetCheckEvaluation]:
    """The checks of an instance, as events that belong to no step."""
    return [
        dg.AssetCheckEvaluation(
            check_name=result.check_name,
            asset_key=dg.AssetKey(instance.stage.name),
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            partition=partition_key(instance),
        )
        for result in check_results(project, instance)
    ]


def unreported(project: Project, dagster: dg.DagsterInstance, lock: Lock) -> list[Instance]:
    """The instances whose entry in dvc.lock is not the one that Dagster was last told of, each after what it reads."""
    found = []
    for stage in active_stages(project.params):
        cells = [cell for cell in instances(stage, project.params) if cell.address in lock]
        known = _last_tags(dagster, stage.name, bool(stage.grid)) if cells else {}
        for cell in cells:
            told = known.get(partition_key(cell) or "", {})
            if LOCK_TAG in told:
                new = told[LOCK_TAG] != lock_tag(cell, lock)
            else:
                new = told.get(VERSION_TAG) != data_version(cell, lock)
            if new:
                found.append(cell)
    return found


class Reported(NamedTuple):
    """What Dagster was told of, and how many instances it was not."""

    told: list[Instance]
    left: int


class Reporter:
    """Tells Dagster of work that it had no part in.

    Args:
        project: where.
        dagster: whom to tell.
        lock: the entries of dvc.lock, where they have been read already.
    """

    def __init__(self, project: Project, dagster: dg.DagsterInstance, lock: Lock | None = None) -> None:
        self.project = project
        self.dagster = dagster
        self.lock: Lock = read_lock(project) if lock is None else lock
        self.cells = [cell for stage in active_stages(project.params) for cell in instances(stage, project.params)]
        self._digests: dict[str, str | None] = {}
        self._code_versions: dict[str, str] = {}

    def report(self, log: Callable[[str], object], budget_s: float = float("inf")) -> "Reported":
        """Report what Dagster does not know, until `budget_s` seconds have gone.

        An instance whose files are not those of dvc.lock (at work, or not pulled) waits until they are. DVC is not
        asked: its lock would get into the way of a `dvc repro` that is at work.
        """
        until = time.monotonic() + budget_s
        found = unreported(self.project, self.dagster, self.lock)
        told = []
        for cell in found:
            if time.monotonic() > until:
                break
            if not self._here(cell):
                log(f"{cell.address}: its files are not those of dvc.lock; not reported yet")
                continue
            self.dagster.report_runless_asset_event(self.materialization(cell, facts(self.project, cell)))
            for evaluation in evaluations(self.project, cell):
                self.dagster.report_runless_asset_event(evaluation)
            log(f"{cell.address}: reported")
            told.append(cell)
        return Reported(told, len(found) - len(told))

    def materialization(self, cell: Instance, metadata: Mapping[str, Any]) -> dg.AssetMaterialization:
        """The event of an instance that DVC has on record, as a step of its asset would have left it."""
        return dg.AssetMaterialization(
            cell.stage.name,
            partition=partition_key(cell),
            metadata=metadata,
            tags={
                VERSION_TAG: data_version(cell, self.lock),
                "dagster/data_version_is_user_provided": "true",
                LOCK_TAG: lock_tag(cell, self.lock),
                "dagster/code_version": self.code_version(cell),
                **dict(self._inputs(cell)),
            },
        )

    def code_version(self, cell: Instance) -> str:
        """The code version of the asset if the work was done by the code that is here now, else another one."""
        entry = self.lock[cell.address]
        digest = entry.get("params", {}).get(CODE_FILE, {}).get(cell.address)
        recorded = {item["path"]: item.get("md5") for item in entry.get("deps", []) if item["path"] in cell.code}
        if digest is not None:
            same = digest == code_digest(cell.code)
        else:
            same = all(self._digest(path) == md5 for path, md5 in recorded.items())
        if not same:
            return "dvc-" + hashlib.sha256(repr((digest, sorted(recorded.items()))).encode()).hexdigest()[:12]
        name = cell.stage.name
        if name not in self._code_versions:
            stage = next(stage for stage in active_stages(self.project.params) if stage.name == name)
            self._code_versions[name] = code_version(stage, self.project)
        return self._code_versions[name]

    def _here(self, cell: Instance) -> bool:
        """Whether the files of an instance are those that dvc.lock names."""
        return all(
            _dvc_digest(self.project.path(out["path"])) == out["md5"] for out in self.lock[cell.address].get("outs", [])
        )

    def _inputs(self, cell: Instance) -> Iterator[tuple[str, str]]:
        """Which data of other assets it was made from, as Dagster writes that itself after a run.

        The pointer says up to which event of the other asset the data counts as read: the last one where DVC read
        what is on record now, else the one before, so that Dagster calls the instance stale as DVC does.
        """
        entry = self.lock[cell.address]
        read = {item["path"]: item.get("md5") for item in entry.get("deps", [])}
        for name in cell.stage.after:
            others = [other for other in self.cells if other.stage.name == name and reads_from(cell, other)]
            if not others:
                continue
            events = self.dagster.fetch_materializations(dg.AssetKey(name), limit=1).records
            versions, current = [], True
            for other in others:
                written = {out["path"]: out["md5"] for out in self.lock.get(other.address, {}).get("outs", [])}
                versions += written.values()
                current &= all(written[path] == md5 for path, md5 in read.items() if path in written)
            pointer = events[0].storage_id - (not current) if events else "NULL"
            version = versions[0] if len(versions) == 1 else hashlib.sha256("".join(versions).encode()).hexdigest()
            yield f"dagster/input_data_version/{name}", version
            yield f"dagster/input_event_pointer/{name}", str(pointer)

    def _digest(self, path: str) -> str | None:
        """The md5 of a code file or folder as DVC takes it; None where it is missing."""
        if path not in self._digests:
            self._digests[path] = _dvc_digest(code_root() / path)
        return self._digests[path]


def _last_tags(dagster: dg.DagsterInstance, name: str, partitioned: bool) -> Mapping[str, Mapping[str, str]]:
    """Tags of the latest materialisation of each partition of an asset; under "" where it has none."""
    key = dg.AssetKey(name)
    if not partitioned:
        event = dagster.get_latest_materialization_event(key)
        return {"": event.asset_materialization.tags or {}} if event else {}
    ids = dagster.event_log_storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    if not ids:
        return {}
    latest = dg.AssetRecordsFilter(asset_key=key, storage_ids=list(ids.values()))
    events = [record.asset_materialization for record in dagster.fetch_materializations(latest, limit=len(ids)).records]
    return {event.partition: event.tags or {} for event in events if event}


def _dvc_digest(path: Path) -> str | None:
    """The md5 of a file or folder as DVC takes it, without what .dvcignore leaves out; None where it is missing."""
    if path.is_file():
        return _md5(path)
    if not path.is_dir():
        return None
    listing = [
        {"md5": _md5(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc" and file.name != ".gitignore"
    ]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
