"""A project of two tiny products under a real DVC, taken in and split through Dagster once for all tests."""

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
segment: {seeds: [0], image_size: 32, steps: 1}
"""


class Recording(LocalRunner):
    """The local runner, keeping what it logs."""

    def __init__(self, project):
        super().__init__(project)
        self.lines = []

    def bring_up_to_date(self, instance, log):
        super().bring_up_to_date(instance, lambda line: (self.lines.append(line), log(line)))


class Nothing:
    """A runner for which everything is up to date."""

    def bring_up_to_date(self, instance, log):
        log("nothing to do")


@dataclass
class Outcome:
    result: object
    lines: list = field(default_factory=list)


def _materialise(project, name, key, runner=None, instance=None):
    """Materialise one partition of one asset, as the UI would."""
    runner = runner or Recording(project)
    result = dg.materialize(
        build_assets(project),
        selection=[name],
        partition_key=key,
        resources={RUNNER: runner},
        raise_on_error=False,
        instance=instance,
    )
    return Outcome(result, getattr(runner, "lines", []))


def draw_images(folder, seed):
    """6 good and 2 x 4 defective images of 64 px with masks, in MVTec AD's layout."""
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
def laid_down(tmp_path_factory):
    """The project, with `bolt` taken in and split; and what the two runs said. Do not change it: see `project`."""
    project = init_project(tmp_path_factory.mktemp("pipelines") / "project")
    project.path("params.yaml").write_text(PARAMS)
    for seed, product in enumerate(("bolt", "nut")):
        draw_images(project.path(f"images/{product}"), seed)
    project = Project(project.root)
    return project, [_materialise(project, name, "bolt") for name in ("ingest", "split")]


@pytest.fixture
def materialise():
    return _materialise


@pytest.fixture(scope="session")
def images():
    """Draws a product's images into a folder, from a seed."""
    return draw_images


@pytest.fixture
def nothing():
    return Nothing()


@pytest.fixture
def project(laid_down, tmp_path):
    """A copy of the project for one test."""
    shutil.copytree(laid_down[0].root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
