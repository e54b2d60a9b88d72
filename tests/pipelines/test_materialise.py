"""Stages run by Dagster with a real DVC: data versions, skipping, failures, staleness."""

from dataclasses import replace

import dagster as dg
import pytest

from defect_core.data.records import record_rows, write_records
from defect_core.graph.instances import find_instance
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.state import data_version, stale_instances


def _materialization(outcome):
    (event,) = [event for event in outcome.result.all_events if event.is_step_materialization]
    return event.materialization


@pytest.mark.parametrize(("index", "name"), [(0, "ingest"), (1, "split")])
def test_the_data_version_is_the_digest_in_dvc_lock(ingested_project, index, name):
    project, outcomes = ingested_project
    assert outcomes[index].result.success
    assert f"> defectory stage {name} --product bolt" in outcomes[index].lines
    lock = read_lock(project)[f"{name}@bolt"]
    event = _materialization(outcomes[index])
    assert event.tags["dagster/data_version"] == lock["outs"][0]["md5"]
    assert event.partition == "bolt"
    assert event.metadata["changed"].value is True


def test_the_metadata_of_real_images_has_counts_and_a_contact_sheet(ingested_project):
    ingest, split = (_materialization(outcome).metadata for outcome in ingested_project[1])
    assert (ingest["images"].value, ingest["defect_types"].value) == (14, 2)
    assert "| crack | 4 |" in ingest["counts"].value
    assert ingest["contact_sheet"].value.startswith("![real images of bolt](data:image/jpeg;base64,")
    # The policy first_third trains on one of four examples of each defect type.
    assert "| crack | 1 | 3 |" in split["counts"].value


def test_a_second_materialisation_runs_nothing(project, materialise, ingested_project):
    again = materialise(project, "split", "bolt")
    assert again.result.success
    assert "Stage 'split@bolt' didn't change, skipping" in again.lines
    assert not [line for line in again.lines if line.startswith("> defectory stage")]
    event = _materialization(again)
    assert event.metadata["changed"].value is False
    assert event.tags["dagster/data_version"] == _materialization(ingested_project[1][1]).tags["dagster/data_version"]


def test_a_changed_setting_makes_its_stage_stale(project):
    before = {instance.address for instance in stale_instances(project)}
    assert not {"ingest@bolt", "split@bolt"} & before
    assert {
        "ingest@nut",
        "split@nut",
        "finetune@bolt-crop-paste",
        "segment@bolt-mix",
        "leaderboard",
    } <= before
    params = project.path("params.yaml")
    params.write_text(params.read_text().replace("first_third", "half"))
    after = {instance.address for instance in stale_instances(Project(project.root))}
    assert after - before == {"split@bolt"}


def test_an_input_error_is_the_description_of_the_failure(project, materialise):
    project.path("images/nut/train/good/000.png").write_bytes(b"no image")
    outcome = materialise(project, "ingest", "nut")
    (failure,) = [event for event in outcome.result.all_events if event.is_step_failure]
    description = failure.step_failure_data.user_failure_data.description
    assert "000.png" in description and "\n" not in description
    assert not description.startswith("defectory:")


def test_a_missing_input_names_the_stage_to_materialise(project, materialise, idle_runner):
    outcome = materialise(project, "split", "nut", idle_runner)
    (failure,) = [event for event in outcome.result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description.startswith(
        "data/raw/nut: missing; materialise ingest"
    )


def test_a_leak_fails_the_check_and_the_run(project, materialise, idle_runner):
    table = project.path("data/split/bolt.parquet")
    records = record_rows(table)
    train = next(record for record in records if record.split == "train")
    index = next(i for i, record in enumerate(records) if record.split == "test")
    records[index] = replace(records[index], sha256=train.sha256)
    table.unlink()
    write_records(records, table)
    outcome = materialise(project, "split", "bolt", idle_runner)
    (check,) = outcome.result.get_asset_check_evaluations()
    assert not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    assert train.image in check.description and records[index].image in check.description
    # The check is blocking: no later asset may use this split.
    assert not outcome.result.success


def test_an_instance_that_never_ran_has_no_data_version(project):
    with pytest.raises(KeyError, match="nut"):
        data_version(find_instance("ingest", project.params, product="nut"), read_lock(project))
