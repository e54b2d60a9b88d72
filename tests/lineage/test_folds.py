"""Average of two runs of a test project, one for each fold."""

import json
import shutil

import numpy as np
import pytest
from synthetic_project import git, write_files, write_run

from defect_core.cli import app as cli
from defect_core.errors import InputError
from defect_core.lineage.folds import average_folds
from defect_core.project.paths import Project


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Project with fold 0 in the commit and fold 1 in the working tree."""
    root = tmp_path_factory.mktemp("folds") / "project"
    write_files(root)
    git(root, "init", "-q", "-b", "main")
    _set(root, "split", "{policy: two_fold, fold: 0}")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "fold 0")
    _set(root, "split", "{policy: two_fold, fold: 1}")
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "project")


def test_scores_are_averaged_for_each_seed(root):
    average = average_folds(Project(root), ["workspace", "HEAD"])
    assert [(side["name"], side["fold"]) for side in average["folds"]] == [("HEAD", 0), ("workspace", 1)]
    file = "metrics/segment/product01/mix.json"
    sides = [json.loads(git(root, "show", f"HEAD:{file}")), json.loads((root / file).read_text())]
    values = np.array([[seed["pixel_ap"] for seed in side["per_seed"]] for side in sides])
    assert len(np.unique(values)) == 6  # folds and seeds all differ
    row = next(r for r in average["rows"] if (r["product"], r["arm"]) == ("product01", "mix"))
    assert row["mean"]["pixel_ap"] == pytest.approx(values.mean(), abs=1e-6)
    assert row["std"]["pixel_ap"] == pytest.approx(values.mean(0).std(ddof=1), abs=1e-6)
    assert [part["pixel_ap"] for part in row["folds"]] == pytest.approx(values.mean(1), abs=1e-6)
    base = next(r for r in average["rows"] if (r["product"], r["arm"]) == ("product01", "real_only"))
    assert row["gain"] == pytest.approx(row["mean"]["pixel_ap"] - base["mean"]["pixel_ap"], abs=1e-6)
    assert base["gain"] is None


def test_average_has_every_downstream_model_product_and_set(root):
    average = average_folds(Project(root), ["HEAD", "workspace"])
    assert len(average["rows"]) == 2 * 4 and len(average["scores"]) == 2 * 2
    generator = average["scores"][0]
    file = f"metrics/score/{generator['product']}/{generator['generator']}.json"
    sides = [json.loads(git(root, "show", f"HEAD:{file}")), json.loads((root / file).read_text())]
    values = [side["scores"]["pooled"]["frechet_lite0"] for side in sides]
    assert values[0] != values[1] and generator["scores"]["frechet_lite0"] == pytest.approx(np.mean(values))


def test_score_that_one_fold_lacks_has_a_reason_instead_of_a_mean(root):
    path = root / "metrics/segment/product00/mix.json"
    content = json.loads(path.read_text())
    content["per_seed"][1] |= {"pro": None, "reasons": {"pro": "no normal image"}}
    path.write_text(json.dumps(content))
    row = next(
        r
        for r in average_folds(Project(root), ["HEAD", "workspace"])["rows"]
        if (r["product"], r["arm"]) == ("product00", "mix")
    )
    assert row["mean"]["pro"] is None and row["reasons"] == {"pro": "no normal image"}
    assert row["mean"]["iou"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("split", "{policy: half}"), "workspace: params.yaml: split.policy is half; expected two_fold"),
        (("split", "{policy: two_fold, fold: 0}"), "split.fold is HEAD: 0, workspace: 0; expected one revision with 0"),
        (("synthesize", "{per_defect: 9}"), "HEAD and workspace: params.yaml: synthesize differs"),
    ],
)
def test_runs_of_other_folds_or_protocols_are_an_error(root, change, message):
    _set(root, *change)
    with pytest.raises(InputError, match=message):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_results_of_another_fold_than_in_the_settings_are_an_error(root):
    lock = root / "dvc.lock"
    lock.write_text(git(root, "show", "HEAD:dvc.lock"))
    with pytest.raises(
        InputError, match=r"workspace: split@product00 last ran with fold 0; params\.yaml has split\.fold 1"
    ):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_unfinished_run_is_an_error(root):
    (root / "metrics/segment/product00/mix.json").unlink()
    with pytest.raises(InputError, match=r"workspace: metrics/segment/product00/mix\.json is missing"):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_command_prints_both_folds(root, monkeypatch, capsys):
    monkeypatch.setenv("DEFECTORY_PROJECT", str(root))
    cli.average_folds("HEAD", "workspace")
    printed = capsys.readouterr().out
    row = average_folds(Project(root), ["HEAD", "workspace"])["rows"][0]
    assert f"{100 * row['mean']['pixel_ap']:.1f} ± {100 * row['std']['pixel_ap']:.1f}" in printed
    assert ", ".join(f"{100 * part['pixel_ap']:.1f}" for part in row["folds"]) in printed


def _set(root, section, value):
    """Replace a section of params.yaml, and write a run with it."""
    lines, skip = [], False
    for line in (root / "params.yaml").read_text().splitlines():
        if not line.startswith((" ", "-")):
            skip = line.startswith(f"{section}:")
        if not skip:
            lines.append(line)
    (root / "params.yaml").write_text("\n".join([*lines, f"{section}: {value}", ""]))
    write_run(Project(root))
