"""Comparison of two revisions of a test project: scores that differ, their spread, and the causes."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from synthetic_project import git, write_files, write_run

from defect_core.cli import app as cli
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import load_image
from defect_core.errors import InputError
from defect_core.lineage.compare import _changed_scores, compare_revisions, comparison_frame
from defect_core.lineage.snapshot import _is_metrics
from defect_core.project.paths import Project


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Project in a subfolder of the repository, so that every path in git has a prefix."""
    root = tmp_path_factory.mktemp("compare") / "project"
    git(root.parent, "init", "-q", "-b", "main")
    code = root / "defect_core/synthesis/batches.py"
    code.parent.mkdir(parents=True)
    code.write_text("one\n")
    write_files(root)
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return root


@pytest.fixture
def project(original, tmp_path):
    shutil.copytree(original.parent, tmp_path / "repository")
    return Project(tmp_path / "repository/project")


def _edit(project, old, new):
    path = project.path("params.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return Project(project.root)


def _why(comparison, **fields):
    """Return the texts of the causes of all scores with these fields."""
    texts = {cause["number"]: f"{cause['kind']}: {cause['what']}" for cause in comparison["causes"]}
    entries = [e for e in comparison["scores"] if all(e[name] == value for name, value in fields.items())]
    return {texts[number] for entry in entries for number in entry["why"]}


def test_revision_equals_itself(project):
    for other in ("HEAD", "workspace", "main"):
        comparison = compare_revisions(project, "HEAD", other)
        assert (comparison["scores"], comparison["causes"], comparison["pending"], comparison["sets"]) == (
            [],
            [],
            [],
            [],
        )
        assert comparison["same"] == 2 * (4 * 8 + 2 * 2)


def test_changed_setting_is_the_only_cause_of_the_scores_it_affects(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    write_run(project)
    comparison = compare_revisions(project, "HEAD", "workspace")
    assert [(c["kind"], c["what"], c["before"], c["after"]) for c in comparison["causes"]] == [
        ("settings", "synthesize.per_defect", "8", "9")
    ]
    arms = {entry["arm"] for entry in comparison["scores"] if entry["kind"] == "segment"}
    assert arms == {"crop-paste", "disentangled-inversion", "mix"}
    assert len(comparison["sets"]) == 4 and not comparison["pending"]


def test_several_changes_are_separate_causes(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    project = _edit(project, "  - 2\n", "  - 7\n")  # segment.seeds
    write_run(project, raw={"images/product01": "other"})
    comparison = compare_revisions(project, "HEAD", "workspace")
    seeds, count, raw = "settings: segment.seeds", "settings: synthesize.per_defect", "raw images: data/raw/product01"
    assert _why(comparison, product="product00", arm="real_only") == {seeds}
    assert _why(comparison, product="product00", arm="mix") == {seeds, count}
    assert _why(comparison, product="product00", kind="score") == {count}
    assert _why(comparison, product="product01", arm="real_only") == {seeds, raw}
    assert _why(comparison, product="product01", kind="score") == {count, raw}


def test_images_of_a_product_affect_that_product_only(project):
    write_run(project, raw={"images/product01": "other"})
    comparison = compare_revisions(project, "HEAD", "workspace")
    assert {entry["product"] for entry in comparison["scores"]} == {"product01"}
    assert _why(comparison) == {"raw images: data/raw/product01"}


def test_changed_code_is_named_by_its_file(project):
    project.path("defect_core/synthesis/batches.py").write_text("two\n")
    write_run(project)
    git(project.root, "commit", "-q", "-a", "-m", "two")
    comparison = compare_revisions(project, "HEAD~1", "HEAD")
    assert _why(comparison) == {"code: defect_core/synthesis/batches.py"}
    assert not [entry for entry in comparison["scores"] if entry["arm"] == "real_only"]


def test_change_without_a_run_is_pending_and_explains_no_score(project):
    project.path("defect_core/synthesis/batches.py").write_text("two\n")
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    for sides in (("HEAD", "workspace"), ("HEAD~1", "HEAD")):
        if "HEAD~1" in sides:
            git(project.root, "commit", "-q", "-a", "-m", "changed, not run")
        comparison = compare_revisions(project, *sides)
        assert not comparison["scores"] and not comparison["causes"]
        pending = {(cause["kind"], cause["what"]) for cause in comparison["pending"]}
        assert pending == {("settings", "synthesize.per_defect"), ("code", "defect_core/synthesis/batches.py")}


def test_score_that_differs_without_an_upstream_change_is_a_rerun(project):
    text = project.path("dvc.lock").read_text()
    entry = text[text.index("segment@product00-mix") :]
    digest = entry[entry.index("metrics/segment/product00/mix.json") :].split("md5: ")[1][:32]
    project.path("dvc.lock").write_text(text.replace(digest, "f" * 32))
    path = project.path("metrics/segment/product00/mix.json")
    path.write_text(path.read_text().replace('"pixel_ap": 0', '"pixel_ap": 1'))
    comparison = compare_revisions(project, "HEAD", "workspace")
    assert _why(comparison) == {"rerun: segment@product00-mix"}


def test_change_that_did_not_change_the_output_is_no_cause(project):
    lock = yaml.safe_load(project.path("dvc.lock").read_text())
    entries = lock["stages"]
    entries["synthesize@product00-crop-paste"]["params"]["params.yaml"]["synthesize"]["per_defect"] = 9
    entry = entries["segment@product00-crop-paste"]
    entry["params"]["params.yaml"]["segment"]["seeds"] = [7]
    for output in entry["outs"]:
        output["md5"] = "f" * 32
    project.path("dvc.lock").write_text(yaml.safe_dump(lock))
    path = project.path("metrics/segment/product00/crop-paste.json")
    path.write_text(path.read_text().replace('"pixel_ap": 0', '"pixel_ap": 1'))
    assert _why(compare_revisions(project, "HEAD", "workspace")) == {"settings: segment.seeds"}


@pytest.mark.parametrize(("change", "beyond"), [(0.027, False), (0.029, True), (-0.029, True), (-0.027, False)])
def test_change_is_beyond_when_it_exceeds_the_joint_spread(project, change, beyond):
    path = project.path("metrics/segment/product00/mix.json")
    content = json.loads(path.read_text())
    content["mean"]["pixel_ap"] += change  # both standard deviations are 0.02: together 0.0283
    path.write_text(json.dumps(content))
    (entry,) = compare_revisions(project, "HEAD", "workspace")["scores"]
    assert (entry["score"], entry["beyond"]) == ("pixel_ap", beyond)
    assert entry["change"] == pytest.approx(change) and entry["spread"] == pytest.approx(0.0282843, rel=1e-5)


def test_beyond_is_none_without_a_spread(project):
    path = project.path("metrics/score/product00/crop-paste.json")
    content = json.loads(path.read_text())
    content["scores"]["pooled"] = {"frechet_lite0": 1.0, "kernel_lite0": 2.0}
    path.write_text(json.dumps(content))
    comparison = compare_revisions(project, "HEAD", "workspace")["scores"]
    assert [(e["score"], e["beyond"], e["before"] is None) for e in comparison] == [
        ("frechet_lite0", None, False),
        ("kernel_lite0", None, True),
    ]


def test_experiment_is_resolved_by_its_name(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    write_run(project)
    git(project.root, "commit", "-q", "-a", "-m", "an experiment")
    git(project.root, "update-ref", "refs/exps/ab/cdef/dizzy-lathe", "HEAD")
    git(project.root, "reset", "-q", "--hard", "HEAD~1")
    comparison = compare_revisions(project, "HEAD", "dizzy-lathe")
    assert comparison["after"]["commit"] == git(project.root, "rev-parse", "refs/exps/ab/cdef/dizzy-lathe")
    assert _why(comparison) == {"settings: synthesize.per_defect"}


def test_frame_has_one_row_per_score_with_its_causes(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    write_run(project)
    comparison = compare_revisions(project, "HEAD", "workspace")
    frame = comparison_frame(comparison)
    assert len(frame) == len(comparison["scores"]) > 0
    assert set(frame["causes"]) == {"settings: synthesize.per_defect"}
    assert (frame["after"] - frame["before"]).to_numpy() == pytest.approx(frame["change"].to_numpy())
    assert frame.loc[frame["kind"] == "score", "beyond"].isna().all()
    assert comparison_frame(compare_revisions(project, "HEAD", "HEAD")).empty


@pytest.mark.parametrize("name", ["nowhere", "--all", "HEAD~9", ""])
def test_unknown_revision_is_an_error_of_one_line(project, name):
    with pytest.raises(InputError) as caught:
        compare_revisions(project, name, "workspace")
    assert "is neither a git revision nor a DVC experiment" in str(caught.value) and "\n" not in str(caught.value)


def test_compare_checks_nothing_out(project):
    (project.path("metrics/segment/product00/mix.json")).unlink()
    before = git(project.root, "status", "--porcelain")
    compare_revisions(project, "HEAD", "workspace")
    assert git(project.root, "status", "--porcelain") == before


def _call(monkeypatch, capsys, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    monkeypatch.setattr(sys, "argv", ["defectory", "compare", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0, capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_command_prints_a_table_or_json(project, monkeypatch, capsys):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    write_run(project)
    code, out = _call(monkeypatch, capsys, project.root, "HEAD")
    assert code == 0 and "1. settings: synthesize.per_defect: 8 → 9" in out and "pixel_ap" in out
    code, out = _call(monkeypatch, capsys, project.root, "HEAD", "--json")
    assert code == 0 and json.loads(out)["causes"][0]["what"] == "synthesize.per_defect"


def _into_cache(project, folder):
    """Copy a folder into DVC's cache as DVC does, and return its digest."""
    listing = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        target = project.path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        listing.append({"md5": md5, "relpath": path.relative_to(folder).as_posix()})
    text = json.dumps(listing)
    md5 = hashlib.md5(text.encode()).hexdigest() + ".dir"
    target = project.path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return md5


def test_page_shows_the_images_of_both_revisions_in_the_cache(project, synthesized, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "set"
    shutil.copytree(synthesized.path("data/synthetic/bolt/crop-paste"), folder)
    one = _into_cache(project, folder)
    first = next(row for row in manifest_rows(folder / "manifest.parquet") if row.accepted)
    from defect_core.data.records import save_png

    save_png(np.full_like(load_image(folder / first.image), 255), folder / first.image)
    other = _into_cache(project, folder)
    lock = project.path("dvc.lock")
    entry = "- path: data/synthetic/product00/crop-paste\n      md5: "
    start = lock.read_text().index(entry) + len(entry)
    old = lock.read_text()[start : start + 32]
    lock.write_text(lock.read_text().replace(old, one))
    git(project.root, "commit", "-q", "-a", "-m", "cached")
    lock.write_text(lock.read_text().replace(one, other).replace("data/synthetic/product01/mix", "x"))
    code, _ = _call(monkeypatch, capsys, project.root, "HEAD", "--html", str(tmp_path / "page"))
    assert code == 0
    text = (tmp_path / "page/index.html").read_text()
    sheet = load_image(tmp_path / f"page/images/product00-crop-paste-{first.defect}.png")
    assert f"product00-crop-paste-{first.defect}.png" in text and str(tmp_path) not in text
    assert (sheet[:112, :112] == 255).mean() < 0.5 and (sheet[114:226, :112] == 255).all()
    (tmp_path / "page/mine.txt").write_text("x")
    assert _call(monkeypatch, capsys, project.root, "HEAD", "--html", str(tmp_path / "page"))[0] == 2


def test_page_names_the_set_that_the_cache_lacks(project, tmp_path, monkeypatch, capsys):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    write_run(project)
    assert _call(monkeypatch, capsys, project.root, "HEAD", "--html", str(tmp_path / "page"))[0] == 0
    assert "the set before and after is not in DVC" in (tmp_path / "page/index.html").read_text()


def test_scores_of_optional_downstream_models_are_compared():
    for path, score in (("classify/nut/mix", "accuracy"), ("segment_unified/mix", "pixel_ap")):
        before, after = ({"mean": {score: value}, "std": {score: 0.01}} for value in (0.5, 0.6))
        (entry,), same = _changed_scores(f"metrics/{path}.json", before, after)
        product = "nut" if "nut" in path else "all products"
        assert (entry["kind"], entry["product"], entry["arm"]) == (path.split("/")[0], product, "mix")
        assert entry["score"] == score and entry["beyond"] and same == 0
        assert _is_metrics(f"metrics/{path}.json")
