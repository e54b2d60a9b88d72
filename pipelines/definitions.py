"""What Dagster loads: the assets, checks, jobs, the schedule and the sensor of one project.

The project is the folder in DEFECTORY_PROJECT, else the one that the current folder lies in.
"""

import dagster as dg

from defect_core.project import Project
from pipelines.assets import RUNNER, build_assets
from pipelines.jobs import asset_jobs, build_nightly, build_regenerate
from pipelines.runner import LocalRunner
from pipelines.schedules import build_schedule
from pipelines.sensors import build_sensor


def build_definitions(project: Project) -> dg.Definitions:
    """The definitions of a project; for one without products a single asset that says how to add one."""
    if not project.params.products:
        return dg.Definitions(
            assets=[
                dg.AssetSpec(
                    "no_products_yet",
                    description="params.yaml lists no products. `defectory add-product NAME PATH` adds one "
                    "(PATH may be `demo`); then reload the definitions.",
                )
            ]
        )
    nightly = build_nightly(project)
    return dg.Definitions(
        assets=build_assets(project),
        jobs=[nightly, build_regenerate(project), *asset_jobs(project.params)],
        schedules=[build_schedule(project, nightly)],
        sensors=[build_sensor(project)],
        resources={RUNNER: LocalRunner(project)},
        # a step only waits for its child process, so a process of its own for each step buys nothing and costs seconds
        executor=dg.in_process_executor,
    )


defs = build_definitions(Project.find())
