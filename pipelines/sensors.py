"""Sensors: new raw images are taken in once copying has ended; what ran without Dagster is shown in it."""

import hashlib
import json
from pathlib import Path

import dagster as dg
import yaml

from defect_core.data.layouts.remote import is_url, list_source
from defect_core.errors import InputError
from defect_core.lineage.lock import LOCK_FILE
from defect_core.project.paths import Project
from pipelines.events import Reporter
from pipelines.jobs import REAL_DATA

INTERVAL_S = 60
REPORT_INTERVAL_S = 30
REPORT_BUDGET_S = 25.0  # Dagster gives a tick a minute
AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def build_sensors(project: Project) -> list[dg.SensorDefinition]:
    """All sensors of a project; both run from the start, without being switched on in the UI."""
    return [build_image_sensor(project), build_report_sensor(project)]


def build_report_sensor(project: Project) -> dg.SensorDefinition:
    """Watches dvc.lock: what `dvc repro`, `defectory run` or `dvc pull` brought shows up as materialised partitions,
    with their checks.

    It says nothing while a run of Dagster is at work, which reports what it does itself. The cursor is a digest of
    dvc.lock when all of it had been reported.
    """
    root = project.root

    @dg.sensor(
        minimum_interval_seconds=REPORT_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="What ran by `dvc repro` or `defectory run`: shown as materialised partitions.",
    )
    def work_of_dvc(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        current = Project(root)
        path = current.path(LOCK_FILE)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        if not digest or digest == context.cursor:
            return dg.SkipReason("dvc.lock is as it was")
        at_work = context.instance.get_run_ids(dg.RunsFilter(statuses=AT_WORK), limit=1)
        if at_work:
            return dg.SkipReason(f"run {at_work[0]} is at work, and reports what it does itself")
        try:
            found = Reporter(current, context.instance).report(context.log.info, REPORT_BUDGET_S)
        except (OSError, KeyError, yaml.YAMLError) as error:
            return dg.SkipReason(f"DVC is at work: {error}")
        if found.left:
            return dg.SkipReason(f"reported {len(found.told)} instances; {found.left} are left for the next tick")
        context.update_cursor(digest)
        return dg.SkipReason(f"reported {len(found.told)} instances")

    return work_of_dvc


def build_image_sensor(project: Project) -> dg.SensorDefinition:
    """Looks at every product's source folder and starts the job `real_data` for those that changed.

    It waits until a folder looks the same at two ticks, so that half a copy is not taken in. What it sees first is
    taken as known: changes made while it was off are left to the nightly run, which asks DVC. What reads the images
    is stale after that and waits for the night, or for a run by hand.
    """
    root = project.root

    @dg.sensor(
        job_name=REAL_DATA,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="New, changed or removed raw images: takes the product in again and splits it.",
    )
    def new_raw_images(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        known = json.loads(context.cursor) if context.cursor else {}
        current = Project(root)
        seen, requests = {}, []
        for product in current.params.products:
            digest = source_state(current, product)
            if digest is None:
                continue
            last = known.get(product, {"seen": digest, "taken": digest})
            taken = last["taken"]
            if digest != taken and digest == last["seen"]:
                requests.append(dg.RunRequest(run_key=f"{product}-{digest}", partition_key=product))
                taken = digest
            seen[product] = {"seen": digest, "taken": taken}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(seen, sort_keys=True))

    return new_raw_images


def source_state(project: Project, product: str) -> str | None:
    """A digest of what lies in a product's source; None for a demo product, and while the source cannot be read."""
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
    """A digest of names, sizes and times of all files in a folder; no file is read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            facts = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
