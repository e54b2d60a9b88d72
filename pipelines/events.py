"""Events for Dagster: one materialisation and its checks for each instance that is up to date.

DVC's hash of the output is the data version. A tag holds a digest of the instance's entry in dvc.lock. By this tag work
of `dvc repro` or `defectory run` is recognised as new, and is reported once.
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
from defect_core.graph.instances import Instance, active_stages, instances, stage_named
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.checks import check_results
from pipelines.metadata import Metadata, read_cost_metadata
from pipelines.partitions import partition_key
from pipelines.stage_views import STAGE_VIEWS
from pipelines.state import code_version, data_version, reads_from

LOCK_TAG = "defectory/lock_entry"
VERSION_TAG = "dagster/data_version"
Lock = dict[str, Any]


def lock_tag(instance: Instance, lock: Lock) -> str:
    """Return a digest of the entry in dvc.lock: it changes with the inputs, settings, code and outputs."""
    return hashlib.sha256(json.dumps(lock[instance.address], sort_keys=True).encode()).hexdigest()[:16]


def instance_metadata(project: Project, instance: Instance) -> Metadata:
    """Return the metadata of an instance that is up to date."""
    return {
        **STAGE_VIEWS[instance.stage.name].read_metadata(project, instance),
        "dvc": dg.MetadataValue.text(instance.address),
        "files": dg.MetadataValue.text(", ".join(instance.outputs + instance.metrics)),
        **read_cost_metadata(project, instance),
    }


def evaluate_checks(project: Project, instance: Instance) -> list[dg.AssetCheckEvaluation]:
    """Run the checks of an instance; return them as events that belong to no step."""
    return [
        dg.AssetCheckEvaluation(
            check_name=str(result.check_name),
            asset_key=dg.AssetKey(instance.stage.name),
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            partition=partition_key(instance),
        )
        for result in check_results(project, instance)
    ]


def find_unreported(project: Project, dagster: dg.DagsterInstance, lock: Lock) -> list[Instance]:
    """Return the instances whose entry in dvc.lock is not the last one in Dagster, each after what it reads."""
    unreported = []
    for stage in active_stages(project.params):
        cells = [cell for cell in instances(stage, project.params) if cell.address in lock]
        reported = _last_tags(dagster, stage.name, bool(stage.grid)) if cells else {}
        for cell in cells:
            tags = reported.get(partition_key(cell) or "", {})
            if LOCK_TAG in tags:
                is_new = tags[LOCK_TAG] != lock_tag(cell, lock)
            else:
                is_new = tags.get(VERSION_TAG) != data_version(cell, lock)
            if is_new:
                unreported.append(cell)
    return unreported


class Report(NamedTuple):
    """The outcome of a report.

    Attributes:
        reported: instances that Dagster now shows.
        pending: number of instances that could not be reported yet.
    """

    reported: list[Instance]
    pending: int


class Reporter:
    """Reports to Dagster what ran without it.

    Args:
        project: the project.
        dagster: the instance of Dagster.
        lock: the entries of dvc.lock; None: read them.
    """

    def __init__(self, project: Project, dagster: dg.DagsterInstance, lock: Lock | None = None) -> None:
        self.project = project
        self.dagster = dagster
        self.lock: Lock = read_lock(project) if lock is None else lock
        self.cells = [cell for stage in active_stages(project.params) for cell in instances(stage, project.params)]
        self._digests: dict[str, str | None] = {}
        self._code_versions: dict[str, str] = {}

    def report(self, log: Callable[[str], object], budget_s: float = float("inf")) -> Report:
        """Report what Dagster does not know, for at most about `budget_s` seconds.

        An instance is not reported while its files differ from dvc.lock, because it is running or was not pulled. DVC
        is not called, because its lock would block a `dvc repro` that is running.

        Args:
            log: receives one line per instance.
            budget_s: no instance is started after this time.
        """
        deadline = time.monotonic() + budget_s
        unreported = find_unreported(self.project, self.dagster, self.lock)
        reported = []
        for cell in unreported:
            if time.monotonic() > deadline:
                break
            if not self._has_recorded_files(cell):
                log(f"{cell.address}: its files differ from dvc.lock; not reported yet")
                continue
            metadata = instance_metadata(self.project, cell)
            self.dagster.report_runless_asset_event(self.materialization(cell, metadata))
            for evaluation in evaluate_checks(self.project, cell):
                self.dagster.report_runless_asset_event(evaluation)
            log(f"{cell.address}: reported")
            reported.append(cell)
        return Report(reported, len(unreported) - len(reported))

    def materialization(self, cell: Instance, metadata: Metadata) -> dg.AssetMaterialization:
        """Return the event that a step of the asset would have written for an instance in dvc.lock."""
        return dg.AssetMaterialization(
            cell.stage.name,
            partition=partition_key(cell),
            metadata=metadata,
            tags={
                VERSION_TAG: data_version(cell, self.lock),
                "dagster/data_version_is_user_provided": "true",
                LOCK_TAG: lock_tag(cell, self.lock),
                "dagster/code_version": self.code_version(cell),
                **dict(self._input_tags(cell)),
            },
        )

    def code_version(self, cell: Instance) -> str:
        """Return the code version of the asset if the installed code did the work, otherwise another version."""
        entry = self.lock[cell.address]
        digest = entry.get("params", {}).get(CODE_FILE, {}).get(cell.code_key)
        recorded = {item["path"]: item.get("md5") for item in entry.get("deps", []) if item["path"] in cell.code}
        if digest is not None:
            is_installed = digest == code_digest(cell.code)
        else:
            is_installed = all(self._code_file_digest(path) == md5 for path, md5 in recorded.items())
        if not is_installed:
            return "dvc-" + hashlib.sha256(repr((digest, sorted(recorded.items()))).encode()).hexdigest()[:12]
        name = cell.stage.name
        if name not in self._code_versions:
            self._code_versions[name] = code_version(stage_named(name), self.project)
        return self._code_versions[name]

    def _has_recorded_files(self, cell: Instance) -> bool:
        """Return whether the files of an instance are those that dvc.lock names."""
        outputs = self.lock[cell.address].get("outs", [])
        return all(_dvc_digest(self.project.path(output["path"])) == output["md5"] for output in outputs)

    def _input_tags(self, cell: Instance) -> Iterator[tuple[str, str]]:
        """Yield the tags that name the data of other assets that an instance read, as Dagster writes them after a run.

        The pointer is the last event of the other asset whose data was read. It is the latest event if DVC read what is
        recorded now, and the one before it otherwise. Dagster then calls the instance stale exactly if DVC does.
        """
        read = {item["path"]: item.get("md5") for item in self.lock[cell.address].get("deps", [])}
        for name in cell.stage.after:
            others = [other for other in self.cells if other.stage.name == name and reads_from(cell, other)]
            if not others:
                continue
            events = self.dagster.fetch_materializations(dg.AssetKey(name), limit=1).records
            versions, is_current = [], True
            for other in others:
                written = {output["path"]: output["md5"] for output in self.lock.get(other.address, {}).get("outs", [])}
                versions += written.values()
                is_current &= all(written[path] == md5 for path, md5 in read.items() if path in written)
            pointer = events[0].storage_id - (not is_current) if events else "NULL"
            version = versions[0] if len(versions) == 1 else hashlib.sha256("".join(versions).encode()).hexdigest()
            yield f"dagster/input_data_version/{name}", version
            yield f"dagster/input_event_pointer/{name}", str(pointer)

    def _code_file_digest(self, path: str) -> str | None:
        """Return DVC's md5 of a code file or folder; None if it is missing."""
        if path not in self._digests:
            self._digests[path] = _dvc_digest(code_root() / path)
        return self._digests[path]


def _last_tags(dagster: dg.DagsterInstance, name: str, is_partitioned: bool) -> Mapping[str, Mapping[str, str]]:
    """Return the tags of the latest materialisation of each partition; of "" for an asset without partitions."""
    key = dg.AssetKey(name)
    if not is_partitioned:
        event = dagster.get_latest_materialization_event(key)
        materialization = event.asset_materialization if event else None
        return {"": materialization.tags or {}} if materialization else {}
    ids = dagster.event_log_storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    if not ids:
        return {}
    latest = dg.AssetRecordsFilter(asset_key=key, storage_ids=list(ids.values()))
    events = [record.asset_materialization for record in dagster.fetch_materializations(latest, limit=len(ids)).records]
    return {event.partition: event.tags or {} for event in events if event and event.partition is not None}


def _dvc_digest(path: Path) -> str | None:
    """Return DVC's md5 of a file or folder, without the files that .dvcignore excludes; None if it is missing."""
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
