"""Stages run through Dagster under a real DVC: data versions, skipping, failures, what is stale."""

from dataclasses import replace

import dagster as dg
import pytest

from defect_core.data.records import read_records, write_records
from defect_core.graph.instances import find_instance
from defect_core.lineage.lock import read_lock
from defect_core.project.paths import Project
from pipelines.state import data_version, stale_instances


def _materialization(outcome):
    (event,) = [event for event in outcome.result.all_events if event.is_step_materialization]
    return event.materialization


@pytest.mark.parametrize(("index", "name"), [(0, "ingest"), (1, "split")])
def test_the_data_version_is_the_digest_in_dvc_lock(laid_down, index, name):
    project, outcomes = laid_down
    assert outcomes[index].result.success
    assert f"> defectory stage {name} --product bolt" in outcomes[index].lines
    lock = read_lock(project)[f"{name}@bolt"]
    found = _materialization(outcomes[index])
    assert found.tags["dagster/data_version"] == lock["outs"][0]["md5"]
    assert found.partition == "bolt"
    assert found.metadata["changed"].value is True


def test_what_the_ui_shows_of_real_images(laid_down):
    ingested, divided = (_materialization(outcome).metadata for outcome in laid_down[1])
    assert (ingested["images"].value, ingested["defect_types"].value) == (14, 2)
    assert "| crack | 4 |" in ingested["counts"].value
    assert ingested["contact_sheet"].value.startswith("![real images of bolt](data:image/jpeg;base64,")
    # first_third trains on one of four examples of each defect
    assert "| crack | 1 | 3 |" in divided["counts"].value


def test_a_second_materialisation_runs_nothing_again(project, materialise, laid_down):
    again = materialise(project, "split", "bolt")
    assert again.result.success
    assert "Stage 'split@bolt' didn't change, skipping" in again.lines
    assert not [line for line in again.lines if line.startswith("> defectory stage")]
    found = _materialization(again)
    assert found.metadata["changed"].value is False
    assert found.tags["dagster/data_version"] == _materialization(laid_down[1][1]).tags["dagster/data_version"]


def test_only_what_changed_is_stale(project):
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


def test_a_mistake_of_the_user_is_the_description_of_the_failure(project, materialise):
    project.path("images/nut/train/good/000.png").write_bytes(b"no image")
    outcome = materialise(project, "ingest", "nut")
    (failure,) = [event for event in outcome.result.all_events if event.is_step_failure]
    description = failure.step_failure_data.user_failure_data.description
    assert "000.png" in description and "\n" not in description
    assert not description.startswith("defectory:")


def test_a_missing_input_names_the_stage_to_run(project, materialise, nothing):
    outcome = materialise(project, "split", "nut", nothing)
    (failure,) = [event for event in outcome.result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description.startswith(
        "data/raw/nut: missing; materialise ingest"
    )


def test_a_planted_leak_fails_the_check_and_the_run(project, materialise, nothing):
    table = project.path("data/split/bolt.parquet")
    records = read_records(table)
    train = next(record for record in records if record.split == "train")
    index = next(i for i, record in enumerate(records) if record.split == "test")
    records[index] = replace(records[index], sha256=train.sha256)
    table.unlink()
    write_records(records, table)
    outcome = materialise(project, "split", "bolt", nothing)
    (check,) = outcome.result.get_asset_check_evaluations()
    assert not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    assert train.image in check.description and records[index].image in check.description
    # the check is blocking: nothing downstream may go on with this split
    assert not outcome.result.success


def test_an_instance_that_never_ran_has_no_data_version(project):
    with pytest.raises(KeyError, match="nut"):
        data_version(find_instance("ingest", project.params, product="nut"), read_lock(project))
