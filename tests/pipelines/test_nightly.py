"""The nightly job runs and reports what is stale; the schedule starts it only if something is stale."""

from datetime import UTC, datetime
from uuid import uuid4

import dagster as dg
import pytest
import yaml

from defect_core.graph.instances import find_instance
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines import jobs, schedules
from pipelines.assets import RUNNER
from pipelines.definitions import build_definitions
from pipelines.events import find_unreported
from pipelines.runner import RunnerError

FIRST_NIGHT = datetime(2026, 1, 2, 2, tzinfo=UTC)


class FakeRunner:
    """Writes another digest into dvc.lock for each instance that it is called with; fails for one address."""

    def __init__(self, project, failing=None, unchanged=()):
        self.path = project.path("dvc.lock")
        self.failing = failing
        self.unchanged = unchanged
        self.addresses = []

    def bring_up_to_date(self, instance, log):
        self.addresses.append(instance.address)
        if instance.address == self.failing:
            raise RunnerError("out of memory")
        if instance.address not in self.unchanged:
            lock = yaml.safe_load(self.path.read_text())
            lock["stages"][instance.address]["outs"][0]["md5"] = "changed"
            self.path.write_text(yaml.safe_dump(lock))


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


def _stale(project, monkeypatch, *names):
    stale = [find_instance(name, project.params, product="bolt") for name in names]
    for module in (jobs, schedules):
        monkeypatch.setattr(module, "stale_instances", lambda _: stale)


def _run(project, runner, instance):
    job = jobs.build_nightly(project)
    resource = dg.ResourceDefinition.hardcoded_resource(runner)
    bound = dg.Definitions(jobs=[job], resources={RUNNER: resource}).resolve_job_def(jobs.NIGHTLY)
    return bound.execute_in_process(instance=instance, raise_on_error=False)


def _latest(instance, name):
    event = instance.get_latest_materialization_event(dg.AssetKey(name))
    return event and event.asset_materialization


def test_a_changed_instance_is_reported_as_a_materialised_partition(project, monkeypatch, instance):
    _stale(project, monkeypatch, "ingest", "split")
    runner = FakeRunner(project, unchanged=("ingest@bolt",))
    assert _run(project, runner, instance).success
    assert runner.addresses == ["ingest@bolt", "split@bolt"]
    assert _latest(instance, "ingest") is None
    event = _latest(instance, "split")
    assert (event.partition, event.tags["dagster/data_version"]) == ("bolt", "changed")
    assert event.metadata["train"].value > 0
    key = dg.AssetCheckKey(dg.AssetKey("split"), "disjoint_split")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event.dagster_event.event_specific_data.passed and record.partition == "bolt"
    assert [cell.address for cell in find_unreported(project, instance, read_lock(project))] == ["ingest@bolt"]


def test_a_failure_skips_only_the_instances_that_depend_on_it(project, monkeypatch, instance):
    _stale(project, monkeypatch, "ingest", "split")
    runner = FakeRunner(project, failing="ingest@bolt")
    result = _run(project, runner, instance)
    assert not result.success and runner.addresses == ["ingest@bolt"]
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description == "ingest@bolt: out of memory"
    _stale(project, monkeypatch, "split", "ingest")  # ingest does not read what split writes.
    runner = FakeRunner(project, failing="split@bolt")
    assert not _run(project, runner, instance).success
    assert runner.addresses == ["split@bolt", "ingest@bolt"] and _latest(instance, "ingest") is not None


def test_regenerate_runs_only_the_instances_related_to_the_request(project, monkeypatch, instance):
    stale = [
        find_instance("ingest", project.params, product="bolt"),
        find_instance("ingest", project.params, product="nut"),
        find_instance("synthesize", project.params, product="bolt", generator="crop-paste"),
        find_instance("synthesize", project.params, product="bolt", generator="disentangled-inversion"),
    ]
    monkeypatch.setattr(jobs, "stale_instances", lambda _: stale)
    addresses = []
    monkeypatch.setattr(jobs, "_bring_and_report", lambda context, _, cell: addresses.append(cell.address))
    job = jobs.build_regenerate(project)
    resource = dg.ResourceDefinition.hardcoded_resource(None)
    bound = dg.Definitions(jobs=[job], resources={RUNNER: resource}).resolve_job_def(jobs.REGENERATE)
    config = {"ops": {"request_regeneration": {"config": {"products": ["bolt"], "generators": ["crop-paste"]}}}}
    assert bound.execute_in_process(config, instance=instance).success
    assert addresses == ["ingest@bolt", "synthesize@bolt-crop-paste"]
    assert Project(project.root).params.regenerations == {"bolt": {"crop-paste": 1}}
    config["ops"]["request_regeneration"]["config"]["products"] = ["screw"]
    result = bound.execute_in_process(config, instance=instance, raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "product 'screw' is not in params.yaml" in failure.step_failure_data.user_failure_data.description


def _tick(project, instance, time=FIRST_NIGHT):
    schedule = build_definitions(project).resolve_schedule_def("nightly_schedule")
    return schedule.evaluate_tick(dg.build_schedule_context(instance=instance, scheduled_execution_time=time))


def test_the_schedule_skips_when_nothing_is_stale(project, monkeypatch, instance):
    _stale(project, monkeypatch)
    tick = _tick(project, instance)
    assert not tick.run_requests and tick.skip_message == "nothing is stale"


def test_the_schedule_starts_one_run_per_night(project, monkeypatch, instance):
    _stale(project, monkeypatch, "ingest", "split")
    (request,) = _tick(project, instance).run_requests
    assert request.run_key == "nightly-2026-01-02" and request.tags["defectory/stale"] == "2"
    instance.add_run(dg.DagsterRun(job_name=jobs.NIGHTLY, run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED))
    tick = _tick(project, instance)
    assert not tick.run_requests and "not finished" in tick.skip_message


def test_missed_nights_start_one_run(project, monkeypatch, instance):
    """After an outage Dagster evaluates the missed ticks one after another."""
    _stale(project, monkeypatch, "ingest", "split")
    run_keys = []
    for day in (2, 3, 4):
        tick = _tick(project, instance, FIRST_NIGHT.replace(day=day))
        for request in tick.run_requests:
            run_keys.append(request.run_key)
            instance.add_run(
                dg.DagsterRun(job_name=jobs.NIGHTLY, run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTING)
            )
    assert run_keys == ["nightly-2026-01-02"]


def test_the_schedule_is_switched_on_by_default(project):
    schedule = build_definitions(project).resolve_schedule_def("nightly_schedule")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")
