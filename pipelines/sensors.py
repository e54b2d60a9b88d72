"""Sensors: one ingests new raw images after they were copied, one reports what ran without Dagster."""

import hashlib
import json
from pathlib import Path

import dagster as dg

from defect_core.data.layouts.remote import is_url, list_source
from defect_core.errors import InputError
from defect_core.lineage.lock import LOCK_FILE
from defect_core.project.paths import Project
from pipelines.events import Reporter
from pipelines.jobs import REAL_DATA

INTERVAL_S = 60
REPORT_INTERVAL_S = 30
REPORT_BUDGET_S = 25.0
"""Dagster stops a tick after one minute."""
RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def build_sensors(project: Project) -> list[dg.SensorDefinition]:
    """Return all sensors of a project; they are switched on by default."""
    return [build_image_sensor(project), build_report_sensor(project)]


def build_report_sensor(project: Project) -> dg.SensorDefinition:
    """Return the sensor that reports what `dvc repro`, `defectory run` or `dvc pull` changed in dvc.lock.

    It does nothing while Dagster runs something, because a run reports its own work. The cursor is the digest of the
    last dvc.lock that was reported completely.
    """
    root = project.root

    @dg.sensor(
        minimum_interval_seconds=REPORT_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what `dvc repro` or `defectory run` did as materialised partitions.",
    )
    def report_dvc_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        current = Project(root)
        path = current.path(LOCK_FILE)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        if not digest or digest == context.cursor:
            return dg.SkipReason("dvc.lock has not changed")
        running = context.instance.get_run_ids(dg.RunsFilter(statuses=RUNNING), limit=1)
        if running:
            return dg.SkipReason(f"run {running[0]} is running and reports its own work")
        try:
            result = Reporter(current, context.instance).report(context.log.info, REPORT_BUDGET_S)
        except (OSError, KeyError, InputError) as error:
            return dg.SkipReason(f"DVC is running: {error}")
        if result.pending:
            return dg.SkipReason(f"reported {len(result.reported)} instances; {result.pending} pending")
        context.update_cursor(digest)
        return dg.SkipReason(f"reported {len(result.reported)} instances")

    return report_dvc_runs


def build_image_sensor(project: Project) -> dg.SensorDefinition:
    """Return the sensor that starts the job `real_data` for products whose source changed.

    It waits until a source is equal at two ticks, so that it never ingests a half-finished copy. Its first tick only
    records the sources; the nightly run, which asks DVC, finds changes from before. The stages that read the images
    are then stale and run at night or by hand.
    """
    root = project.root

    @dg.sensor(
        job_name=REAL_DATA,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="New, changed or removed raw images: ingests the product and splits it again.",
    )
    def new_raw_images(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        last_states = json.loads(context.cursor) if context.cursor else {}
        current = Project(root)
        states, requests = {}, []
        for product in current.params.products:
            digest = source_state(current, product)
            if digest is None:
                continue
            last = last_states.get(product, {"seen": digest, "ingested": digest})
            ingested = last["ingested"]
            if digest != ingested and digest == last["seen"]:
                requests.append(dg.RunRequest(run_key=f"{product}-{digest}", partition_key=product))
                ingested = digest
            states[product] = {"seen": digest, "ingested": ingested}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(states, sort_keys=True))

    return new_raw_images


def source_state(project: Project, product: str) -> str | None:
    """Return a digest of the file list of a product's source; None for a demo product or an unreadable source."""
    path = project.params.sources[product].path
    if path is not None and is_url(path):
        try:
            listing = list_source(path)
        except InputError:
            return None
        return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()[:16]
    folder = project.source_path(product)
    return folder_state(folder) if folder is not None and folder.is_dir() else None


def folder_state(folder: Path) -> str:
    """Return a digest of the names, sizes and modification times of all files in a folder; no file is read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
