"""Asset checks of the stage views. They run inside the asset, not in a separate process."""

import warnings

import dagster as dg

from defect_core.graph.instances import Instance
from defect_core.graph.table import Stage
from defect_core.project.params import Params
from defect_core.project.paths import Project
from pipelines.findings import Findings
from pipelines.partitions import partitions_of
from pipelines.stage_views import STAGE_VIEWS, Check

MAX_SHOWN_PROBLEMS = 10


def check_specs(stage: Stage, params: Params) -> list[dg.AssetCheckSpec]:
    """Return the checks of the asset of a stage.

    Each has the partitions of the asset, so that a passed partition does not hide a failed one.
    """
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster, whose version is pinned. A test checks them.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check.name,
                asset=stage.name,
                blocking=check.is_blocking,
                description=check.about,
                partitions_def=partitions_of(stage, params),
            )
            for check in STAGE_VIEWS[stage.name].checks
        ]


def check_results(project: Project, instance: Instance) -> list[dg.AssetCheckResult]:
    """Run all checks of an instance that is up to date; return their results in the order of `check_specs`."""
    checks = STAGE_VIEWS[instance.stage.name].checks
    return [_result(instance, check, check.find(project, instance)) for check in checks]


def _result(instance: Instance, check: Check, findings: Findings) -> dg.AssetCheckResult:
    more = len(findings.problems) - MAX_SHOWN_PROBLEMS
    description = "; ".join(findings.problems[:MAX_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    return dg.AssetCheckResult(
        check_name=check.name,
        asset_key=instance.stage.name,
        passed=not findings.problems,
        severity=dg.AssetCheckSeverity.ERROR if check.is_blocking else dg.AssetCheckSeverity.WARN,
        description=description or None,
        metadata={
            "instance": instance.address,
            "problems": len(findings.problems),
            "checked": findings.checked,
            **findings.numbers,
        },
    )
