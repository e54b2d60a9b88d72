"""A small product after ingest, split, fine-tuning and synthesis, shared by all tests; in git, without DVC."""

import pytest
from synthetic_project import git, run, write_product

from defect_core.project.paths import Project

PARAMS = """\
# kept
seed: 3
products: [bolt]
sources: {bolt: {path: images/bolt, layout: mvtec}}
generators: [crop-paste]
arms: [real_only, crop-paste]
ingest: {min_per_defect: 3}
split: {policy: half}
finetune: {crop-paste: {}}
synthesize: {per_defect: 5, batch_size: 2}
score: {image_size: 32}
segment: {seeds: [0, 1], image_size: 32, steps: 1, folds: 0}
"""
LOCK = """\
schema: '2.0'
stages:
  synthesize@bolt-crop-paste:
    cmd: defectory stage synthesize
    params:
      params.yaml: {seed: 3, backbone: embedded}
    outs:
    - path: data/synthetic/bolt/crop-paste
      md5: 0123456789abcdef0123456789abcdef.dir
"""


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory):
    """The project; tests must not change it."""
    root = tmp_path_factory.mktemp("lineage") / "project"
    write_product(root / "images/bolt")
    (root / "params.yaml").write_text(PARAMS)
    project = Project(root)
    run(project, "ingest", product="bolt")
    run(project, "split", product="bolt")
    for name in ("finetune", "synthesize"):
        run(project, name, product="bolt", generator="crop-paste")
    (root / "dvc.lock").write_text(LOCK)
    (root / ".gitignore").write_text("/data\n/images\n/.defectory\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return project
