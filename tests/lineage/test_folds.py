"""Two runs of a made-up project, one of each fold, and what they come to together."""

import json
import shutil

import numpy as np
import pytest
from made_up_project import git, pretend, write_files

from defect_core.cli import app as cli
from defect_core.errors import InputError
from defect_core.lineage.folds import average_folds
from defect_core.project.paths import Project


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Fold 0 is the commit, fold 1 the working tree."""
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


def test_scores_are_averaged_seed_by_seed(root):
    found = average_folds(Project(root), ["workspace", "HEAD"])
    assert [(side["name"], side["fold"]) for side in found["folds"]] == [("HEAD", 0), ("workspace", 1)]
    file = "metrics/segment/product01/mix.json"
    sides = [json.loads(git(root, "show", f"HEAD:{file}")), json.loads((root / file).read_text())]
    values = np.array([[seed["pixel_ap"] for seed in side["per_seed"]] for side in sides])
    assert len(np.unique(values)) == 6  # folds and seeds all differ
    row = next(r for r in found["rows"] if (r["product"], r["arm"]) == ("product01", "mix"))
    assert row["mean"]["pixel_ap"] == pytest.approx(values.mean(), abs=1e-6)
    assert row["std"]["pixel_ap"] == pytest.approx(values.mean(0).std(ddof=1), abs=1e-6)
    assert [part["pixel_ap"] for part in row["folds"]] == pytest.approx(values.mean(1), abs=1e-6)
    base = next(r for r in found["rows"] if (r["product"], r["arm"]) == ("product01", "real_only"))
    assert row["gain"] == pytest.approx(row["mean"]["pixel_ap"] - base["mean"]["pixel_ap"], abs=1e-6)
    assert base["gain"] is None


def test_every_judge_product_and_set_is_there(root):
    found = average_folds(Project(root), ["HEAD", "workspace"])
    assert len(found["rows"]) == 2 * 4 and len(found["scores"]) == 2 * 2
    generator = found["scores"][0]
    file = f"metrics/score/{generator['product']}/{generator['generator']}.json"
    sides = [json.loads(git(root, "show", f"HEAD:{file}")), json.loads((root / file).read_text())]
    values = [side["scores"]["pooled"]["frechet_lite0"] for side in sides]
    assert values[0] != values[1] and generator["scores"]["frechet_lite0"] == pytest.approx(np.mean(values))


def test_a_score_that_one_fold_lacks_has_no_mean_but_a_reason(root):
    path = root / "metrics/segment/product00/mix.json"
    content = json.loads(path.read_text())
    content["per_seed"][1] |= {"pro": None, "reasons": {"pro": "no good image"}}
    path.write_text(json.dumps(content))
    row = next(
        r
        for r in average_folds(Project(root), ["HEAD", "workspace"])["rows"]
        if (r["product"], r["arm"]) == ("product00", "mix")
    )
    assert row["mean"]["pro"] is None and row["reasons"] == {"pro": "no good image"}
    assert row["mean"]["iou"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("split", "{policy: half}"), "workspace: split.policy is half; expected two_fold"),
        (("split", "{policy: two_fold, fold: 0}"), "found split.fold HEAD: 0, workspace: 0; expected 0 and 1"),
        (("synthesize", "{per_defect: 9}"), "HEAD and workspace: synthesize differs in params.yaml"),
    ],
)
def test_runs_that_are_not_the_two_folds_of_one_protocol_are_refused(root, change, message):
    _set(root, *change)
    with pytest.raises(InputError, match=message):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_results_of_another_fold_than_the_settings_name_are_refused(root):
    lock = root / "dvc.lock"
    lock.write_text(git(root, "show", "HEAD:dvc.lock"))
    with pytest.raises(InputError, match="workspace: split@product00 last ran with fold 0 and params.yaml asks for 1"):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_an_unfinished_run_is_refused(root):
    (root / "metrics/segment/product00/mix.json").unlink()
    with pytest.raises(InputError, match="workspace: metrics/segment/product00/mix.json is missing"):
        average_folds(Project(root), ["HEAD", "workspace"])


def test_the_command_prints_both_folds(root, monkeypatch, capsys):
    monkeypatch.setenv("DEFECTORY_PROJECT", str(root))
    cli.average_folds("HEAD", "workspace")
    printed = capsys.readouterr().out
    row = average_folds(Project(root), ["HEAD", "workspace"])["rows"][0]
    assert f"{100 * row['mean']['pixel_ap']:.1f} ± {100 * row['std']['pixel_ap']:.1f}" in printed
    assert ", ".join(f"{100 * part['pixel_ap']:.1f}" for part in row["folds"]) in printed


def _set(root, section, value):
    """Replace a section of params.yaml and run."""
    lines, skip = [], False
    for line in (root / "params.yaml").read_text().splitlines():
        if not line.startswith((" ", "-")):
            skip = line.startswith(f"{section}:")
        if not skip:
            lines.append(line)
    (root / "params.yaml").write_text("\n".join([*lines, f"{section}: {value}", ""]))
    pretend(Project(root))
