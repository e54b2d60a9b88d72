"""One asset per row of the Stage table, made by one factory. DVC decides whether a stage must run; Dagster owns the
order, the grid, the pools, the checks, what the UI shows, and the schedule."""

import hashlib
import time
from typing import Any

import dagster as dg

from defect_core.dvcfile import code_digest
from defect_core.errors import InputError
from defect_core.lineage.lock import read_lock
from defect_core.project import Project
from defect_core.stages import Instance, Stage, active_stages, instances
from pipelines.checks import check_results, check_specs
from pipelines.metadata import describe
from pipelines.partitions import dependency, instance_of, partitions_of
from pipelines.runner import Log, Runner, RunnerError
from pipelines.state import data_version

RUNNER = "runner"
GROUPS = {
    "ingest": "real_data",
    "split": "real_data",
    "adapt": "generators",
    "finetune": "generators",
    "finetune_catalogue": "generators",
    "synthesize": "synthetic",
    "score": "evaluation",
    "segment": "evaluation",
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
        kinds={"dvc"},
        pool=stage.pool,
        code_version=code_version(stage, project),
        partitions_def=partitions_of(stage, params),
        deps=[dependency(stage, other, params) for other in active_stages(params) if other.name in stage.after],
        check_specs=check_specs(stage),
        required_resource_keys={RUNNER},
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        current = Project(root)
        key = context.partition_key if context.has_partition_key else None
        runner: Runner = getattr(context.resources, RUNNER)
        try:
            instance = instance_of(stage, key, current.params)
            version, metadata = bring_up_to_date(current, instance, runner, context.log.info)
        except (InputError, RunnerError, KeyError) as error:
            raise dg.Failure(description=str(error.args[0])) from None
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version),
            metadata=metadata,
            check_results=check_results(current, instance),
        )

    return asset


def bring_up_to_date(project: Project, instance: Instance, runner: Runner, log: Log) -> tuple[str, dict[str, Any]]:
    """Let the runner do what is stale of one instance.

    Returns:
        The data version and the metadata of the result.

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
    facts = {
        "dvc": dg.MetadataValue.text(instance.address),
        "files": dg.MetadataValue.text(", ".join(instance.outputs + instance.metrics)),
        "seconds": dg.MetadataValue.float(round(seconds, 1)),
        "changed": dg.MetadataValue.bool(lock.get(instance.address) != before),
    }
    return data_version(instance, lock), {**describe(project, instance), **facts}


def code_version(stage: Stage, project: Project) -> str:
    """A digest over the code of all instances of a stage: the files that dvc.yaml lists."""
    variants = {tuple(instance.code): instance for instance in instances(stage, project.params)}
    digests = sorted(code_digest(instance) for instance in variants.values())
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
