"""Jobs: the nightly one, which does whatever is stale, and chains of assets to launch by hand for some partitions."""

import dagster as dg

from defect_core.errors import InputError
from defect_core.project import Project
from defect_core.stages import Instance
from pipelines.assets import RUNNER, bring_up_to_date
from pipelines.checks import check_results, check_specs
from pipelines.partitions import partition_key
from pipelines.runner import RunnerError
from pipelines.state import read_lock, reads_from, stale_instances

NIGHTLY = "nightly"


def asset_jobs() -> list:
    """Chains whose assets share their partitions, so that one partition runs through in one go."""
    return [
        dg.define_asset_job("real_data", ["ingest", "split"], description="Take real images in and split them."),
        dg.define_asset_job(
            "synthetic_data",
            ["finetune", "synthesize", "score"],
            description="Train a generator, draw, score.",
        ),
    ]


def build_nightly(project: Project) -> dg.JobDefinition:
    """The job that asks DVC what is stale and does only that; what changed shows up as materialised partitions."""
    root = project.root

    @dg.op(name="bring_up_to_date", required_resource_keys={RUNNER}, pool="gpu")
    def nightly_op(context: dg.OpExecutionContext) -> None:
        current = Project(root)
        stale = stale_instances(current)
        if not stale:
            context.log.info("Nothing is stale.")
        failed: list[Instance] = []
        reasons: list[str] = []
        for number, instance in enumerate(stale, 1):
            cause = next((other for other in failed if reads_from(instance, other)), None)
            if cause is not None:
                context.log.warning(f"{instance.address}: left out, for {cause.address} failed")
                failed.append(instance)
                continue
            context.log.info(f"{instance.address} ({number}/{len(stale)})")
            reason = _do(context, current, instance)
            if reason:
                failed.append(instance)
                reasons.append(f"{instance.address}: {reason}")
        if reasons:
            raise dg.Failure(description="\n".join(reasons))

    @dg.job(name=NIGHTLY, description="Brings up to date whatever DVC calls stale, and nothing else.")
    def nightly() -> None:
        nightly_op()

    return nightly


def _do(context: dg.OpExecutionContext, project: Project, instance: Instance) -> str | None:
    """Bring one instance up to date and report what changed; why it failed, else None. One failure stops only
    what depends on it."""
    before = read_lock(project).get(instance.address)
    runner = getattr(context.resources, RUNNER)
    try:
        version, metadata = bring_up_to_date(project, instance, runner, context.log.info)
    except (InputError, RunnerError, KeyError) as error:
        context.log.error(f"{instance.address}: {error.args[0]}")
        return str(error.args[0])
    if read_lock(project).get(instance.address) == before:
        return None
    context.log_event(
        dg.AssetMaterialization(
            instance.stage.name,
            partition=partition_key(instance),
            metadata=metadata,
            tags={"dagster/data_version": version},
        )
    )
    blocking = {spec.name for spec in check_specs(instance.stage) if spec.blocking}
    wrong = None
    for result in check_results(project, instance):
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                check_name=result.check_name,
                asset_key=dg.AssetKey(instance.stage.name),
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
            )
        )
        if not result.passed and result.check_name in blocking:
            wrong = f"check {result.check_name} failed: {result.description}"
    return wrong
