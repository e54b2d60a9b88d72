"""What ran without Dagster is reported to it once, with the same tags as a run of the asset; nothing runs twice."""

from uuid import uuid4

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from defect_core.graph.dvcfile import CODE_FILE
from defect_core.graph.local import run_dvc
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines import report as command
from pipelines.definitions import build_definitions
from pipelines.events import LOCK_TAG, Reporter, find_unreported
from pipelines.sensors import build_report_sensor
from pipelines.state import code_version


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


class SensorTicks:
    def __init__(self, project, instance):
        self.sensor, self.instance, self.cursor = build_report_sensor(project), instance, None

    def __call__(self):
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            tick = self.sensor.evaluate_tick(context)
        assert not tick.run_requests
        self.cursor = tick.cursor
        return tick.skip_message


def _count(instance, name):
    return len(instance.fetch_materializations(dg.AssetKey(name), limit=100).records)


def _latest(instance, name, partition):
    chosen = dg.AssetRecordsFilter(dg.AssetKey(name), asset_partitions=[partition])
    return instance.fetch_materializations(chosen, limit=1).records[0].asset_materialization


def _status(project, instance, name, partition):
    """The staleness that the UI of Dagster shows."""
    graph = build_definitions(project).resolve_asset_graph()
    return CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance)).get_status(
        dg.AssetKey(name), partition
    )


def _edit_lock(project, address, change):
    path = project.path("dvc.lock")
    lock = yaml.safe_load(path.read_text())
    change(lock["stages"][address])
    path.write_text(yaml.safe_dump(lock))


def test_a_run_of_dvc_is_reported_once_and_not_run_again(project, instance, materialise):
    assert run_dvc(project, "repro", "--quiet", "split@nut") == 0
    tick = SensorTicks(project, instance)
    assert tick() == "reported 4 instances"  # Those of bolt too, because this Dagster is new.
    entry = read_lock(project)["split@nut"]
    reported = _latest(instance, "split", "nut")
    assert reported.tags["dagster/data_version"] == entry["outs"][0]["md5"]
    stages = {stage.name: stage for stage in (cell.stage for cell in Reporter(project, instance).cells)}
    assert reported.tags["dagster/code_version"] == code_version(stages["split"], project)
    assert reported.metadata["train"].value > 0 and reported.metadata["work_seconds"].value >= 0
    assert reported.metadata["device"].value == "cpu"
    assert "contact_sheet" in _latest(instance, "ingest", "nut").metadata
    key = dg.AssetCheckKey(dg.AssetKey("split"), "disjoint_split")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event.dagster_event.event_specific_data.passed and record.partition == "nut"
    assert _status(project, instance, "split", "nut") == StaleStatus.FRESH

    assert tick() == "dvc.lock has not changed" and _count(instance, "split") == 2
    again = materialise(project, "split", "nut", instance=instance)
    assert again.result.success and "Stage 'split@nut' didn't change, skipping" in again.lines
    event = _latest(instance, "split", "nut")
    assert event.tags[LOCK_TAG] == reported.tags[LOCK_TAG]
    assert event.tags["dagster/code_version"] == reported.tags["dagster/code_version"]
    shown = set(event.metadata) - {"seconds", "changed"}
    assert shown == set(reported.metadata)
    tick.cursor = None
    assert tick() == "reported 0 instances"


def test_a_run_of_dagster_is_neither_reported_nor_run_again_by_dvc(project, instance, materialise, capfd):
    materialise(project, "ingest", "bolt", instance=instance)
    assert [cell.address for cell in find_unreported(project, instance, read_lock(project))] == ["split@bolt"]
    assert run_dvc(project, "repro", "ingest@bolt") == 0
    assert "didn't change, skipping" in capfd.readouterr().out
    assert [cell.address for cell in find_unreported(project, instance, read_lock(project))] == ["split@bolt"]


def test_a_run_with_other_settings_and_the_same_result_is_unreported(project, instance):
    reporter = Reporter(project, instance)
    for cell in reporter.cells:
        if cell.key == "bolt" and cell.stage.name in ("ingest", "split"):
            instance.report_runless_asset_event(reporter.materialization(cell, {}))
    assert not find_unreported(project, instance, read_lock(project))
    _edit_lock(project, "ingest@bolt", lambda entry: entry["params"]["params.yaml"].update(seed=1))
    assert [cell.address for cell in find_unreported(project, instance, read_lock(project))] == ["ingest@bolt"]


def test_an_instance_that_is_stale_for_dvc_is_stale_for_dagster(project, instance):
    _edit_lock(project, "split@bolt", lambda entry: entry["params"][CODE_FILE].update({"split@bolt": "older"}))
    assert SensorTicks(project, instance)() == "reported 2 instances"
    assert _latest(instance, "split", "bolt").tags["dagster/code_version"].startswith("dvc-")
    assert _status(project, instance, "split", "bolt") == StaleStatus.STALE
    assert _status(project, instance, "ingest", "bolt") == StaleStatus.FRESH


def test_missing_files_and_running_work_are_reported_later(project, instance):
    table = project.path("data/split/bolt.parquet")
    content = table.read_bytes()
    table.unlink()
    tick = SensorTicks(project, instance)
    assert tick() == "reported 1 instances; 1 pending"
    table.write_bytes(content)
    run = dg.DagsterRun(job_name="nightly", run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    assert "is running" in tick() and _count(instance, "split") == 0
    instance.delete_run(run.run_id)
    assert tick() == "reported 1 instances" and _count(instance, "ingest") == 1
    project.path("dvc.lock").write_text("schema: '2.0'\nstages: {")
    assert "DVC is running" in tick()


def test_the_command_reports_all_instances(project):
    result = command.report(project)
    assert [cell.address for cell in result.reported] == ["ingest@bolt", "split@bolt"] and not result.pending
    assert not command.report(Project(project.root)).reported
