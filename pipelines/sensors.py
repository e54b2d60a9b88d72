"""The sensor for new raw images: what changed in a product's source folder is taken in, once copying has ended."""

import hashlib
import json
from pathlib import Path

import dagster as dg

from defect_core.project import Project
from pipelines.jobs import REAL_DATA

INTERVAL_S = 60


def build_sensor(project: Project) -> dg.SensorDefinition:
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
            folder = current.source_path(product)
            if folder is None or not folder.is_dir():
                continue
            digest = folder_state(folder)
            last = known.get(product, {"seen": digest, "taken": digest})
            taken = last["taken"]
            if digest != taken and digest == last["seen"]:
                requests.append(dg.RunRequest(run_key=f"{product}-{digest}", partition_key=product))
                taken = digest
            seen[product] = {"seen": digest, "taken": taken}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(seen, sort_keys=True))

    return new_raw_images


def folder_state(folder: Path) -> str:
    """A digest of names, sizes and times of all files in a folder; no file is read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            facts = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
