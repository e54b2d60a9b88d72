"""Jobs: the nightly one, which does whatever is stale, and chains of assets to launch by hand for some partitions."""

import dagster as dg
from pydantic import Field

from defect_core.cli.scaffold import request_regeneration
from defect_core.errors import InputError
from defect_core.graph.instances import Instance, stage_named
from defect_core.project.params import Params
from defect_core.project.paths import Project
from pipelines.assets import RUNNER, bring_up_to_date
from pipelines.checks import check_specs
from pipelines.events import Reporter, evaluations
from pipelines.kubernetes import step_tags
from pipelines.partitions import partitions_of
from pipelines.runner import RunnerError
from pipelines.state import all_instances, around, reads_from, stale_instances

NIGHTLY = "nightly"
REAL_DATA = "real_data"
REGENERATE = "regenerate"


def asset_jobs(params: Params) -> list:
    """Chains whose assets share their partitions, so that one partition runs through in one go.

    Where a generator is fitted on the catalogue, `finetune` has partitions for the others only, and is launched alone.
    """
    shared = partitions_of(stage_named("finetune"), params) == partitions_of(stage_named("synthesize"), params)
    chain = [*(["finetune"] if shared else []), "synthesize", "score"]
    return [
        dg.define_asset_job(REAL_DATA, ["ingest", "split"], description="Take real images in and split them."),
        dg.define_asset_job(
            "synthetic_data",
            chain,
            description="Train a generator, draw, score." if shared else "Draw with a fitted generator, score.",
        ),
    ]


def build_nightly(project: Project) -> dg.JobDefinition:
    """The job that asks DVC what is stale and does only that; what changed shows up as materialised partitions."""
    root = project.root

    @dg.op(name="bring_up_to_date", required_resource_keys={RUNNER}, pool="gpu", tags=step_tags("gpu"))
    def nightly_op(context: dg.OpExecutionContext) -> None:
        current = Project(root)
        _do_all(context, current, stale_instances(current))

    @dg.job(name=NIGHTLY, description="Brings up to date whatever DVC calls stale, and nothing else.")
    def nightly() -> None:
        nightly_op()

    return nightly


class Fresh(dg.Config):
    """Which sets are drawn anew."""

    products: list[str] = Field(default=[], description="Only these products; all where none is named.")
    generators: list[str] = Field(default=[], description="Only these generators; all where none is named.")


def build_regenerate(project: Project) -> dg.JobDefinition:
    """The job that asks for fresh samples under a new seed, which params.yaml records, draws them and redoes what
    reads them."""
    root = project.root

    @dg.op(name="request_regeneration", required_resource_keys={RUNNER}, pool="gpu", tags=step_tags("gpu"))
    def regenerate_op(context: dg.OpExecutionContext, config: Fresh) -> None:
        try:
            addresses = request_regeneration(Project(root), config.products, config.generators)
        except InputError as error:
            raise dg.Failure(description=str(error)) from None
        for address in addresses:
            context.log.info(f"{address}: a fresh draw, recorded in params.yaml")
        current = Project(root)
        concerned = around(addresses, all_instances(current))
        _do_all(context, current, [cell for cell in stale_instances(current) if cell.address in concerned])

    @dg.job(name=REGENERATE, description="Draws fresh samples under a new seed and redoes what reads them.")
    def regenerate() -> None:
        regenerate_op()

    return regenerate


def _do_all(context: dg.OpExecutionContext, project: Project, stale: list[Instance]) -> None:
    """Bring instances up to date, in their order.

    Raises:
        dg.Failure: some failed; why, a line each. Only what reads from those was left out.
    """
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
        reason = _do(context, project, instance)
        if reason:
            failed.append(instance)
            reasons.append(f"{instance.address}: {reason}")
    if reasons:
        raise dg.Failure(description="\n".join(reasons))


def _do(context: dg.OpExecutionContext, project: Project, instance: Instance) -> str | None:
    """Bring one instance up to date and report what changed; why it failed, else None. One failure stops only
    what depends on it."""
    runner = getattr(context.resources, RUNNER)
    try:
        lock, metadata = bring_up_to_date(project, instance, runner, context.log.info)
    except (InputError, RunnerError, KeyError) as error:
        context.log.error(f"{instance.address}: {error.args[0]}")
        return str(error.args[0])
    if not metadata["changed"].value:
        return None
    reporter = Reporter(project, context.instance, lock)
    context.log_event(reporter.materialization(instance, metadata))
    blocking = {spec.name for spec in check_specs(instance.stage, project.params) if spec.blocking}
    wrong = None
    for result in evaluations(project, instance):
        context.instance.report_runless_asset_event(result)
        if not result.passed and result.check_name in blocking:
            wrong = f"check {result.check_name} failed: {result.description}"
    return wrong
