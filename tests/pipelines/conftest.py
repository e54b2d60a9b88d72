"""A project of two tiny products under a real DVC; one product is ingested and split by Dagster, once for all tests."""

import shutil
from dataclasses import dataclass, field

import dagster as dg
import numpy as np
import pytest

from defect_core.cli.scaffold import init_project
from defect_core.data.records import save_png
from defect_core.project.paths import Project
from pipelines.assets import RUNNER, build_assets
from pipelines.runner import LocalRunner

PARAMS = """\
seed: 0
products: [bolt, nut]
sources:
  bolt: {path: images/bolt, layout: mvtec}
  nut: {path: images/nut, layout: mvtec}
generators: [crop-paste, disentangled-inversion]
arms: [real_only, crop-paste, disentangled-inversion, mix]
ingest: {min_per_defect: 3}
split: {policy: first_third}
finetune: {crop-paste: {}, disentangled-inversion: {}}
synthesize: {per_defect: 2}
score: {image_size: 32}
segment: {seeds: [0], image_size: 32, steps: 1, folds: 0}
"""


class RecordingRunner(LocalRunner):
    """The local runner; it stores what it logs."""

    def __init__(self, project):
        super().__init__(project)
        self.lines = []

    def bring_up_to_date(self, instance, log):
        super().bring_up_to_date(instance, lambda line: (self.lines.append(line), log(line)))


class IdleRunner:
    """A runner that never runs anything."""

    def bring_up_to_date(self, instance, log):
        log("everything is up to date")


@dataclass
class Outcome:
    result: object
    lines: list = field(default_factory=list)


def _materialise(project, name, key, runner=None, instance=None):
    """Materialise one partition of one asset, like the UI."""
    runner = runner or RecordingRunner(project)
    result = dg.materialize(
        build_assets(project),
        selection=[name],
        partition_key=key,
        resources={RUNNER: runner},
        raise_on_error=False,
        instance=instance,
    )
    return Outcome(result, getattr(runner, "lines", []))


def write_product_images(folder, seed):
    """Write 6 normal and 2 x 4 defective images of 64 px with masks, in the layout of MVTec AD."""
    rng = np.random.default_rng(seed)
    for number in range(6):
        save_png(rng.integers(90, 130, (64, 64, 3), dtype=np.uint8), folder / f"train/good/{number:03d}.png")
    for defect, grey in (("crack", 10), ("stain", 240)):
        for number in range(4):
            image = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            mask = np.zeros((64, 64), bool)
            mask[20 + number : 32, 24:40] = True
            image[mask] = grey
            save_png(image, folder / f"test/{defect}/{number:03d}.png")
            save_png(mask, folder / f"ground_truth/{defect}/{number:03d}_mask.png")


@pytest.fixture(scope="session")
def ingested_project(tmp_path_factory):
    """The project with `bolt` ingested and split, and the outcomes of both runs; do not change it."""
    project = init_project(tmp_path_factory.mktemp("pipelines") / "project")
    project.path("params.yaml").write_text(PARAMS)
    for seed, product in enumerate(("bolt", "nut")):
        write_product_images(project.path(f"images/{product}"), seed)
    project = Project(project.root)
    return project, [_materialise(project, name, "bolt") for name in ("ingest", "split")]


@pytest.fixture
def materialise():
    return _materialise


@pytest.fixture(scope="session")
def write_images():
    """Write the images of a product to a folder, from a seed."""
    return write_product_images


@pytest.fixture
def idle_runner():
    return IdleRunner()


@pytest.fixture
def project(ingested_project, tmp_path):
    """A copy of the project for one test."""
    shutil.copytree(ingested_project[0].root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
