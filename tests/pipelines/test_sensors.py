"""New raw images start a run for their product, once, and not before copying has ended."""

import json

import dagster as dg
import pytest

from defect_core.project.paths import Project
from pipelines.definitions import build_definitions
from pipelines.sensors import build_image_sensor


@pytest.fixture
def project(tmp_path):
    tmp_path.joinpath("params.yaml").write_text(
        "products: [bolt, nut, made_up]\n"
        "sources: {bolt: {path: images/bolt}, nut: {path: images/nut}, made_up: {layout: demo}}\n"
        "generators: []\narms: [real_only]\n"
    )
    for product in ("bolt", "nut"):
        (tmp_path / f"images/{product}/good").mkdir(parents=True)
        (tmp_path / f"images/{product}/good/0.png").write_text("0")
    return Project(tmp_path)


class Ticking:
    """The sensor with its cursor, tick after tick: the partitions it asks for."""

    def __init__(self, project):
        self.sensor, self.cursor = build_image_sensor(project), None

    def __call__(self):
        with dg.build_sensor_context(cursor=self.cursor) as context:
            found = self.sensor(context)
        self.cursor = found.cursor
        self.requests = found.run_requests
        return [request.partition_key for request in found.run_requests]


def test_a_new_image_starts_its_product_once_and_only_when_it_lies_still(project):
    tick = Ticking(project)
    assert [tick(), tick()] == [[], []]
    project.path("images/bolt/good/1.png").write_text("1")
    assert tick() == [], "may still be copied"
    project.path("images/bolt/good/2.png").write_text("2")
    assert tick() == [], "is still copied"
    assert tick() == ["bolt"]
    assert tick.requests[0].run_key.startswith("bolt-")
    assert [tick(), tick()] == [[], []]


def test_a_removed_and_a_changed_image_count_too(project):
    tick = Ticking(project)
    tick()
    project.path("images/bolt/good/0.png").unlink()
    project.path("images/nut/good/0.png").write_text("other")
    assert tick() == [] and tick() == ["bolt", "nut"]


def test_a_folder_that_goes_away_and_a_product_that_is_gone_do_no_harm(project):
    tick = Ticking(project)
    tick()
    project.path("images/nut").rename(project.path("images/away"))
    assert [tick(), tick()] == [[], []] and set(json.loads(tick.cursor)) == {"bolt"}


def test_it_is_on_from_the_start_and_starts_a_job_there_is(project):
    sensor = build_definitions(project).resolve_sensor_def("new_raw_images")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert build_definitions(project).resolve_job_def(sensor.job_name).name == "real_data"
