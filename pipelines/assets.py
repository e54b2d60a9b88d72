"""One Dagster asset per row of the stage table.

DVC decides whether a stage must run. Dagster decides the order, the partitions, the pools and the schedule, and shows
the results and the checks.
"""

import time
from typing import Any, NamedTuple

import dagster as dg

from defect_core.errors import InputError
from defect_core.graph.instances import Instance, active_stages
from defect_core.graph.table import Stage
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.checks import check_results, check_specs
from pipelines.events import LOCK_TAG, instance_metadata, lock_tag
from pipelines.kubernetes import step_tags
from pipelines.metadata import Metadata
from pipelines.partitions import dependency, instance_of, partitions_of
from pipelines.runner import Log, Runner, RunnerError
from pipelines.state import code_version, data_version

RUNNER = "runner"
"""Resource key of the `Runner` that the assets and jobs need."""


class Update(NamedTuple):
    """An instance after its runner ended.

    Attributes:
        lock: the entries of dvc.lock.
        metadata: what the UI shows.
        has_changed: whether the entry of the instance in dvc.lock differs from before.
    """

    lock: dict[str, Any]
    metadata: Metadata
    has_changed: bool


def build_assets(project: Project) -> list[dg.AssetsDefinition]:
    """Return the assets of all active stages. They need a `Runner` under the resource key `RUNNER`."""
    return [build_asset(stage, project) for stage in active_stages(project.params)]


def build_asset(stage: Stage, project: Project) -> dg.AssetsDefinition:
    """Return the asset of one stage, with one partition per instance."""
    root = project.root
    params = project.params

    @dg.asset(
        name=stage.name,
        group_name=stage.group,
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
            update = bring_up_to_date(current, instance, runner, context.log.info)
        except (InputError, RunnerError, KeyError) as error:
            raise dg.Failure(description=str(error.args[0])) from None
        return dg.MaterializeResult(
            data_version=dg.DataVersion(data_version(instance, update.lock)),
            metadata=update.metadata,
            tags={LOCK_TAG: lock_tag(instance, update.lock)},
            check_results=check_results(current, instance),
        )

    return asset


def bring_up_to_date(project: Project, instance: Instance, runner: Runner, log: Log) -> Update:
    """Let the runner bring one instance up to date.

    Raises:
        InputError: a file that the instance reads is missing.
        InputError, RunnerError: see `Runner`.
        KeyError: the runner succeeded, but dvc.lock has no entry.
    """
    for path in instance.inputs:
        if not project.path(path).exists():
            action = f"materialise {', '.join(instance.stage.after)} first, or `dvc pull`"
            if not instance.stage.after:
                action = f"see sources.{instance.key} in params.yaml"
            raise InputError(f"{path}: missing; {action}")
    before = read_lock(project).get(instance.address)
    start = time.monotonic()
    runner.bring_up_to_date(instance, log)
    seconds = time.monotonic() - start
    lock = read_lock(project)
    data_version(instance, lock)  # Raises KeyError before the metadata is read.
    has_changed = lock.get(instance.address) != before
    metadata = {
        **instance_metadata(project, instance),
        "seconds": dg.MetadataValue.float(round(seconds, 1)),
        "changed": dg.MetadataValue.bool(has_changed),
    }
    return Update(lock, metadata, has_changed)
