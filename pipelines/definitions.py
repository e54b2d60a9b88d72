"""The definitions that Dagster loads: the assets, checks, jobs, schedule and sensors of one project.

The project is the folder in DEFECTORY_PROJECT, otherwise the one that contains the current folder.
"""

import os

import dagster as dg

from defect_core.errors import InputError
from defect_core.project.paths import Project
from pipelines import kubernetes
from pipelines.assets import RUNNER, build_assets
from pipelines.jobs import asset_jobs, build_nightly, build_regenerate
from pipelines.runner import Runner, make_runner
from pipelines.schedules import build_schedule
from pipelines.sensors import build_sensors


def build_definitions(project: Project) -> dg.Definitions:
    """Return the definitions of a project; without products a single asset that says how to add one."""
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
        sensors=build_sensors(project),
        resources={RUNNER: runner_resource(project)},
        executor=kubernetes.executor(),
    )


def runner_resource(project: Project) -> dg.ResourceDefinition:
    """Return the resource that does the work. Its defaults come from the environment; the launchpad can change them."""

    @dg.resource(
        config_schema={
            "name": dg.Field(
                str,
                default_value=os.environ.get("DEFECTORY_RUNNER") or "local",
                description="local (a child process), ray, or kubernetes (a child process in the pod of the step)",
            ),
            "address": dg.Field(
                str, default_value=os.environ.get("RAY_ADDRESS", ""), description="ray: host:port of the cluster's head"
            ),
        },
        description="Brings one stage instance up to date.",
    )
    def runner(context: dg.InitResourceContext) -> Runner:
        config = context.resource_config
        try:
            return make_runner(project, config["name"], config["address"])
        except InputError as error:
            raise dg.Failure(description=str(error)) from None

    return runner


defs = build_definitions(Project.find())
