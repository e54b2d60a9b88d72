"""The release gate with a real DVC, which deletes the outputs of other stages before it runs them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from defect_core.cli.scaffold import init_project
from defect_core.data.files import folder_digest, write_json
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, save_png, write_records
from defect_core.graph import dvcfile
from defect_core.graph.local import child_environment
from defect_core.metrics.image_results import SCORES_FILE, ArmScores, save_arm_scores
from defect_core.project.paths import Project

PARAMS = """\
products: [bolt]
sources: {bolt: {layout: demo}}
generators: [crop-paste]
arms: [real_only, crop-paste]
finetune: {crop-paste: {}}
segment: {seeds: [0, 1]}
release: {scores: [pixel_ap]}
"""


def _dvc(project, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project.root, env=child_environment(project), capture_output=True, text=True, check=False,
    )  # fmt: skip


def _write_upstream_outputs(project, grey, **means):
    """Write what the stages before the gate would write, and record it in dvc.lock without running them."""
    folder = project.path("data/synthetic/bolt/crop-paste")
    save_png(np.full((8, 8, 3), grey, np.uint8), folder / "images/a.png")
    save_png(np.ones((8, 8), bool), folder / "masks/a.png")
    row = ManifestRow(
        sample_id="a", product="bolt", defect="dent", image="images/a.png", mask="masks/a.png", generator="crop-paste",
        seed=1, source_image=None, source_mask=None, prompt=None, strength=None, mask_area=64, quality=1.0,
        accepted=True, reject_reason=None, model_digest=None, image_sha256=None,
    )  # fmt: skip
    write_manifest([row], folder / "manifest.parquet")
    record = Record("bolt", "good", "a.png", None, "train", "0", 8, 8)
    for path in ("data/raw/bolt/records.parquet", "data/split/bolt.parquet"):
        write_records([record], project.path(path))
    for arm, mean in means.items():
        arm = arm.replace("__", "-")
        content = {"arm": arm, "mean": {"pixel_ap": mean}, "std": {"pixel_ap": 0.001}}
        write_json(project.path(f"metrics/segment/bolt/{arm}.json"), content)
        values = mean + np.array([-0.001, 0.001])
        scores = ArmScores(
            tuple("abcdefghijklmnopqrstuvwx"), np.arange(24) % 2 == 0, (0, 1), {"pixel_ap": values},
            {"pixel_ap": np.repeat(values[:, None], 20, 1)},
        )  # fmt: skip
        save_arm_scores(scores, project.path(f"data/segment/bolt/{arm}") / SCORES_FILE)
    project.path("data/generator/bolt/crop-paste").mkdir(parents=True, exist_ok=True)
    upstream = ["ingest@bolt", "split@bolt", "finetune@bolt-crop-paste", "synthesize@bolt-crop-paste"]
    result = _dvc(project, "commit", "-f", *upstream, "segment@bolt-real_only", "segment@bolt-crop-paste")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = init_project(tmp_path_factory.mktemp("gate") / "project")
    project.path("params.yaml").write_text(PARAMS)
    project = Project(project.root)
    dvcfile.sync(project)
    return project


def _release(project):
    result = _dvc(project, "repro", "--single-item", "release@bolt")
    record = project.path("metrics/release/bolt.json")
    return result, json.loads(record.read_text()) if record.is_file() else None


def test_a_worse_candidate_does_not_replace_the_last_release(project):
    target = project.path("data/release/bolt")
    _write_upstream_outputs(project, 10, real_only=0.4, crop__paste=0.5)
    result, decision = _release(project)
    assert result.returncode == 0, result.stderr
    assert decision["decision"] == "promoted" and (target / "crop-paste/images/a.png").is_file()
    before = folder_digest(target)

    _write_upstream_outputs(project, 99, real_only=0.4, crop__paste=0.45)
    result, decision = _release(project)
    assert result.returncode == 0 and "Running stage 'release@bolt'" in result.stdout, result.stdout
    assert decision["decision"] == "kept" and "worse than the last release" in decision["reason"]
    assert folder_digest(target) == before

    # Without the files DVC runs the stage again. It must neither start from nothing nor promote the refused candidate.
    shutil.rmtree(target)
    result, decision = _release(project)
    assert decision["released"] == "crop-paste"
    if result.returncode:
        assert "with `dvc checkout` or `dvc pull`" in result.stdout + result.stderr
        assert _dvc(project, "checkout", "release@bolt").returncode == 0
    assert folder_digest(target) == before

    _write_upstream_outputs(project, 120, real_only=0.4, crop__paste=0.55)
    _, decision = _release(project)
    assert decision["decision"] == "promoted" and folder_digest(target) != before
    assert "didn't change, skipping" in _release(project)[0].stdout
