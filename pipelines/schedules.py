"""The nightly schedule: it runs at 02:00 UTC what is stale."""

import dagster as dg

from defect_core.project.paths import Project
from pipelines.jobs import NIGHTLY
from pipelines.state import stale_instances

CRON = "0 2 * * *"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def build_schedule(project: Project, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Return the schedule that starts the nightly job if DVC calls something stale.

    It is switched on by default, because a tick without work costs two seconds. It starts at most one run per night,
    and none while an earlier nightly run is unfinished.
    """
    root = project.root

    @dg.schedule(
        job=job,
        cron_schedule=CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night at 02:00 UTC: runs what DVC calls stale.",
    )
    def nightly_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        unfinished = context.instance.get_run_ids(dg.RunsFilter(job_name=NIGHTLY, statuses=UNFINISHED), limit=1)
        if unfinished:
            return dg.SkipReason(f"nightly run {unfinished[0]} is not finished yet")
        stale = stale_instances(Project(root))
        if not stale:
            return dg.SkipReason("nothing is stale")
        return dg.RunRequest(
            run_key=f"{NIGHTLY}-{context.scheduled_execution_time.date().isoformat()}",
            tags={"defectory/stale": str(len(stale))},
        )

    return nightly_schedule
