"""A change makes stale what depends on it and nothing else: checked with a real DVC, on outputs written by the test."""

import shutil
import subprocess
import sys

import pytest

from defect_core.cli.scaffold import init_project, request_regeneration
from defect_core.graph import code, dvcfile
from defect_core.graph.instances import instances
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES
from defect_core.project.paths import Project
from pipelines.state import stale_instances

PARAMS = """\
# our settings
seed: 0  # never changed
products: [bolt, nut]
sources:
  bolt: {path: images/bolt, layout: mvtec}
  nut: {path: images/nut, layout: mvtec}
generators: [crop-paste, disentangled-inversion]
arms: [real_only, crop-paste, disentangled-inversion, mix]
backbone: embedded
ingest: {min_per_defect: 3}
split: {policy: first_third}
finetune: {crop-paste: {feather: 2}, disentangled-inversion: {}}
synthesize: {per_defect: 2}
score: {image_size: 32}
segment: {seeds: [0]}
release: {}
"""


@pytest.fixture(scope="module")
def up_to_date(tmp_path_factory):
    """All outputs exist and are in dvc.lock, although nothing ran; beside them a copy of the code."""
    base = tmp_path_factory.mktemp("exactness")
    project = init_project(base / "project")
    project.path("params.yaml").write_text(PARAMS)
    for product in ("bolt", "nut"):
        project.path(f"images/{product}").mkdir(parents=True)
        project.path(f"images/{product}/000.png").write_text(product)  # Only DVC reads it, for its digest.
    project = Project(project.root)
    shutil.copytree(
        code.code_root() / "defect_core", base / "code/defect_core", ignore=shutil.ignore_patterns("__pycache__")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "code_root", lambda: base / "code")
        dvcfile.sync(project)
    for cell in (cell for stage in STAGES for cell in instances(stage, project.params)):
        for path in (*cell.outputs, *cell.metrics):
            file = project.path(path) if path.endswith((".json", ".parquet")) else project.path(path) / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(cell.address)
        if cell.stage.name == "ingest":
            (project.path(cell.outputs[0]) / "records.parquet").write_text(cell.address)
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "-f"],
        cwd=project.root, env=child_environment(project), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return base


@pytest.fixture
def project(up_to_date, tmp_path, monkeypatch):
    shutil.copytree(up_to_date, tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(code, "code_root", lambda: tmp_path / "copy/code")
    return Project(tmp_path / "copy/project")


def _stale(project):
    return {instance.address for instance in stale_instances(Project(project.root))}


def _downstream(product, generator):
    arms = (generator, "mix")
    return {
        f"synthesize@{product}-{generator}",
        f"score@{product}-{generator}",
        *(f"segment@{product}-{arm}" for arm in arms),
        f"release@{product}",
        "leaderboard",
    }


def test_an_override_reaches_one_generator_of_one_product(project):
    with project.path("params.yaml").open("a") as stream:
        stream.write("overrides: {bolt: {crop-paste: {feather: 4}}}\n")
    assert _stale(project) == {"finetune@bolt-crop-paste"} | _downstream("bolt", "crop-paste")


def test_a_regeneration_reaches_one_set(project):
    assert request_regeneration(project, ["nut"], ["disentangled-inversion"]) == [
        "synthesize@nut-disentangled-inversion"
    ]
    assert _stale(project) == _downstream("nut", "disentangled-inversion")
    text = project.path("params.yaml").read_text()
    assert "# our settings" in text and "# never changed" in text
    request_regeneration(Project(project.root), ["nut"], ["disentangled-inversion"])
    assert Project(project.root).params.regenerations == {"nut": {"disentangled-inversion": 2}}


def test_a_raw_image_reaches_its_product_only(project):
    project.path("images/bolt/000.png").write_text("changed")
    cells = {cell.address for stage in STAGES for cell in instances(stage, project.params)}
    assert _stale(project) == {address for address in cells if "bolt" in address} | {"leaderboard"}


def test_a_code_file_of_a_method_reaches_that_method_only(project, tmp_path):
    with (tmp_path / "copy/code/defect_core/generators/crop_paste/generator.py").open("a") as stream:
        stream.write("# edited\n")
    assert _stale(project) == {
        address
        for product in ("bolt", "nut")
        for address in {f"finetune@{product}-crop-paste"} | _downstream(product, "crop-paste")
    }
