"""One asset per row of the Stage table, made by one factory. DVC decides whether a stage must run; Dagster owns the
order, the grid, the pools, the checks, what the UI shows, and the schedule."""

import time
from typing import Any

import dagster as dg

from defect_core.errors import InputError
from defect_core.graph.instances import Instance, active_stages
from defect_core.graph.table import Stage
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.checks import check_results, check_specs
from pipelines.events import LOCK_TAG, facts, lock_tag
from pipelines.kubernetes import step_tags
from pipelines.partitions import dependency, instance_of, partitions_of
from pipelines.runner import Log, Runner, RunnerError
from pipelines.state import code_version, data_version

RUNNER = "runner"
GROUPS = {
    "ingest": "real_data",
    "split": "real_data",
    "adapt": "generators",
    "finetune": "generators",
    "finetune_catalogue": "generators",
    "synthesize": "synthetic",
    "normals": "synthetic",
    "score": "evaluation",
    "segment": "evaluation",
    "segment_unified": "evaluation",
    "classify": "evaluation",
    "detect": "evaluation",
    "release": "release",
    "leaderboard": "evaluation",
}


def build_assets(project: Project) -> list[dg.AssetsDefinition]:
    """The assets of all stages in use. They need a `Runner` under the resource key `runner`."""
    return [build_asset(stage, project) for stage in active_stages(project.params)]


def build_asset(stage: Stage, project: Project) -> dg.AssetsDefinition:
    """The asset of one stage, with a partition per instance."""
    root = project.root
    params = project.params

    @dg.asset(
        name=stage.name,
        group_name=GROUPS.get(stage.name, "other"),
        description=stage.about,
        owners=list(params.owners),
        kinds={"dvc"},
        pool=stage.pool,
        op_tags=step_tags(stage.pool),
        code_version=code_version(stage, project),
        partitions_def=partitions_of(stage, params),
        deps=[dependency(stage, other, params) for other in active_stages(params) if other.name in stage.after],
        check_specs=check_specs(stage, params),
        required_resource_keys={RUNNER},
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        current = Project(root)
        key = context.partition_key if context.has_partition_key else None
        runner: Runner = getattr(context.resources, RUNNER)
        try:
            instance = instance_of(stage, key, current.params)
            lock, metadata = bring_up_to_date(current, instance, runner, context.log.info)
        except (InputError, RunnerError, KeyError) as error:
            raise dg.Failure(description=str(error.args[0])) from None
        return dg.MaterializeResult(
            data_version=dg.DataVersion(data_version(instance, lock)),
            metadata=metadata,
            tags={LOCK_TAG: lock_tag(instance, lock)},
            check_results=check_results(current, instance),
        )

    return asset


def bring_up_to_date(
    project: Project, instance: Instance, runner: Runner, log: Log
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let the runner do what is stale of one instance.

    Returns:
        dvc.lock as it then is, and the metadata of the result; `changed` says whether the entry is another one.

    Raises:
        InputError: a file that the instance reads is missing.
        InputError, RunnerError: see `Runner`.
        KeyError: the runner ended well, yet dvc.lock has no entry.
    """
    for path in instance.inputs:
        if not project.path(path).exists():
            cure = f"materialise {', '.join(instance.stage.after)} first, or `dvc pull`"
            if not instance.stage.after:
                cure = f"see sources.{instance.key} in params.yaml"
            raise InputError(f"{path}: missing; {cure}")
    before = read_lock(project).get(instance.address)
    start = time.monotonic()
    runner.bring_up_to_date(instance, log)
    seconds = time.monotonic() - start
    lock = read_lock(project)
    data_version(instance, lock)  # says what is wrong where DVC has no record of it
    return lock, {
        **facts(project, instance),
        "seconds": dg.MetadataValue.float(round(seconds, 1)),
        "changed": dg.MetadataValue.bool(lock.get(instance.address) != before),
    }
