"""New raw images start one run for their product, after they were copied."""

import json

import dagster as dg
import pytest

from defect_core.project.paths import Project
from pipelines.definitions import build_definitions
from pipelines.sensors import build_image_sensor


@pytest.fixture
def project(tmp_path):
    tmp_path.joinpath("params.yaml").write_text(
        "products: [bolt, nut, demo]\n"
        "sources: {bolt: {path: images/bolt}, nut: {path: images/nut}, demo: {layout: demo}}\n"
        "generators: []\narms: [real_only]\n"
    )
    for product in ("bolt", "nut"):
        (tmp_path / f"images/{product}/good").mkdir(parents=True)
        (tmp_path / f"images/{product}/good/0.png").write_text("0")
    return Project(tmp_path)


class SensorTicks:
    """The sensor with its cursor; each call is a tick and returns the requested partitions."""

    def __init__(self, project):
        self.sensor, self.cursor = build_image_sensor(project), None

    def __call__(self):
        with dg.build_sensor_context(cursor=self.cursor) as context:
            result = self.sensor(context)
        self.cursor = result.cursor
        self.requests = result.run_requests
        return [request.partition_key for request in result.run_requests]


def test_a_new_image_starts_one_run_after_two_equal_ticks(project):
    tick = SensorTicks(project)
    assert [tick(), tick()] == [[], []]
    project.path("images/bolt/good/1.png").write_text("1")
    assert tick() == [], "may still be copied"
    project.path("images/bolt/good/2.png").write_text("2")
    assert tick() == [], "is still copied"
    assert tick() == ["bolt"]
    assert tick.requests[0].run_key.startswith("bolt-")
    assert [tick(), tick()] == [[], []]


def test_a_removed_or_changed_image_starts_a_run(project):
    tick = SensorTicks(project)
    tick()
    project.path("images/bolt/good/0.png").unlink()
    project.path("images/nut/good/0.png").write_text("other")
    assert tick() == [] and tick() == ["bolt", "nut"]


def test_a_missing_source_folder_starts_no_run(project):
    tick = SensorTicks(project)
    tick()
    project.path("images/nut").rename(project.path("images/moved"))
    assert [tick(), tick()] == [[], []] and set(json.loads(tick.cursor)) == {"bolt"}


def test_the_sensor_is_switched_on_by_default_and_its_job_exists(project):
    sensor = build_definitions(project).resolve_sensor_def("new_raw_images")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert build_definitions(project).resolve_job_def(sensor.job_name).name == "real_data"
