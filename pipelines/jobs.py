"""Jobs: `nightly` runs what is stale, `regenerate` requests new samples, and others run chains of assets."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from defect_core.cli.scaffold import request_regeneration
from defect_core.errors import InputError
from defect_core.graph.instances import Instance, stage_named
from defect_core.project.params import Params
from defect_core.project.paths import Project
from pipelines.assets import RUNNER, bring_up_to_date
from pipelines.checks import check_specs
from pipelines.events import Reporter, evaluate_checks
from pipelines.kubernetes import step_tags
from pipelines.partitions import partitions_of
from pipelines.runner import Runner, RunnerError
from pipelines.state import all_instances, reads_from, related_addresses, stale_instances

if TYPE_CHECKING:
    # Dagster exports the function that returns this class, but not the class.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

NIGHTLY = "nightly"
REAL_DATA = "real_data"
REGENERATE = "regenerate"


def asset_jobs(params: Params) -> list["UnresolvedAssetJobDefinition"]:
    """Return the chains of assets with the same partitions, so that one partition runs through all of them.

    With a generator that is trained on the catalogue, `finetune` has fewer partitions and is launched separately.
    """
    includes_finetune = partitions_of(stage_named("finetune"), params) == partitions_of(
        stage_named("synthesize"), params
    )
    chain = [*(["finetune"] if includes_finetune else []), "synthesize", "score"]
    description = "Generate samples with a trained generator and score them."
    if includes_finetune:
        description = "Train a generator, generate samples, and score them."
    return [
        dg.define_asset_job(REAL_DATA, ["ingest", "split"], description="Ingest real images and split them."),
        dg.define_asset_job("synthetic_data", chain, description=description),
    ]


def build_nightly(project: Project) -> dg.JobDefinition:
    """Return the job that runs what DVC calls stale; changed instances are reported as materialised partitions."""
    root = project.root

    @dg.op(name="bring_up_to_date", required_resource_keys={RUNNER}, pool="gpu", tags=step_tags("gpu"))
    def nightly_op(context: dg.OpExecutionContext) -> None:
        current = Project(root)
        _bring_all_up_to_date(context, current, stale_instances(current))

    @dg.job(name=NIGHTLY, description="Brings up to date what DVC calls stale, and nothing else.")
    def nightly() -> None:
        nightly_op()

    return nightly


class RegenerationConfig(dg.Config):
    """Which synthetic sets are generated again."""

    products: list[str] = Field(default=[], description="Only these products; all if none is named.")
    generators: list[str] = Field(default=[], description="Only these generators; all if none is named.")


def build_regenerate(project: Project) -> dg.JobDefinition:
    """Return the job that generates new samples with a new seed, and then runs what reads them.

    The new seed is recorded in params.yaml.
    """
    root = project.root

    @dg.op(name="request_regeneration", required_resource_keys={RUNNER}, pool="gpu", tags=step_tags("gpu"))
    def regenerate_op(context: dg.OpExecutionContext, config: RegenerationConfig) -> None:
        try:
            addresses = request_regeneration(Project(root), config.products, config.generators)
        except InputError as error:
            raise dg.Failure(description=str(error)) from None
        for address in addresses:
            context.log.info(f"{address}: new samples requested in params.yaml")
        current = Project(root)
        related = related_addresses(addresses, all_instances(current))
        _bring_all_up_to_date(context, current, [cell for cell in stale_instances(current) if cell.address in related])

    @dg.job(name=REGENERATE, description="Generates new samples with a new seed, and runs what reads them.")
    def regenerate() -> None:
        regenerate_op()

    return regenerate


def _bring_all_up_to_date(context: dg.OpExecutionContext, project: Project, stale: list[Instance]) -> None:
    """Bring instances up to date, in the given order.

    Raises:
        dg.Failure: some failed; one line each. Only the instances that read from those were skipped.
    """
    if not stale:
        context.log.info("Nothing is stale.")
    failed: list[Instance] = []
    reasons: list[str] = []
    for number, instance in enumerate(stale, 1):
        cause = next((other for other in failed if reads_from(instance, other)), None)
        if cause is not None:
            context.log.warning(f"{instance.address}: skipped, because {cause.address} failed")
            failed.append(instance)
            continue
        context.log.info(f"{instance.address} ({number}/{len(stale)})")
        reason = _bring_and_report(context, project, instance)
        if reason:
            failed.append(instance)
            reasons.append(f"{instance.address}: {reason}")
    if reasons:
        raise dg.Failure(description="\n".join(reasons))


def _bring_and_report(context: dg.OpExecutionContext, project: Project, instance: Instance) -> str | None:
    """Bring one instance up to date and report it if it changed.

    Returns:
        Why it failed, or which blocking check failed; None for success.
    """
    runner: Runner = getattr(context.resources, RUNNER)
    try:
        update = bring_up_to_date(project, instance, runner, context.log.info)
    except (InputError, RunnerError, KeyError) as error:
        context.log.error(f"{instance.address}: {error.args[0]}")
        return str(error.args[0])
    if not update.has_changed:
        return None
    reporter = Reporter(project, context.instance, update.lock)
    context.log_event(reporter.materialization(instance, update.metadata))
    blocking = {spec.name for spec in check_specs(instance.stage, project.params) if spec.blocking}
    problem = None
    for evaluation in evaluate_checks(project, instance):
        context.instance.report_runless_asset_event(evaluation)
        if not evaluation.passed and evaluation.check_name in blocking:
            problem = f"check {evaluation.check_name} failed: {evaluation.description}"
    return problem
