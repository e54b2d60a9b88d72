"""Two revisions of a made-up project: which scores moved, beyond their spread or not, and what is behind it."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from made_up_project import git, pretend, write_files

from defect_core.cli import app as cli
from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image
from defect_core.errors import InputError
from defect_core.lineage.compare import _moved, compare
from defect_core.lineage.snapshot import _is_metrics
from defect_core.project.paths import Project


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """In a folder below the root of the repository, so that every path has a prefix for git."""
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


def _why(found, **fields):
    """Texts of the causes of all differing scores with these fields."""
    texts = {cause["number"]: f"{cause['kind']}: {cause['what']}" for cause in found["causes"]}
    entries = [e for e in found["scores"] if all(e[name] == value for name, value in fields.items())]
    return {texts[number] for entry in entries for number in entry["why"]}


def test_a_revision_equals_itself(project):
    for other in ("HEAD", "workspace", "main"):
        found = compare(project, "HEAD", other)
        assert (found["scores"], found["causes"], found["pending"], found["sets"]) == ([], [], [], [])
        assert found["same"] == 2 * (4 * 8 + 2 * 2)


def test_a_setting_is_named_with_what_it_reaches_and_nothing_else(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    pretend(project)
    found = compare(project, "HEAD", "workspace")
    assert [(c["kind"], c["what"], c["before"], c["after"]) for c in found["causes"]] == [
        ("settings", "synthesize.per_defect", "8", "9")
    ]
    arms = {entry["arm"] for entry in found["scores"] if entry["kind"] == "segment"}
    assert arms == {"crop-paste", "disentangled-inversion", "mix"}
    assert len(found["sets"]) == 4 and not found["pending"]


def test_causes_of_several_changes_are_told_apart(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    project = _edit(project, "  - 2\n", "  - 7\n")  # segment.seeds
    pretend(project, raw={"images/product01": "other"})
    found = compare(project, "HEAD", "workspace")
    seeds, drawn, raw = "settings: segment.seeds", "settings: synthesize.per_defect", "raw images: data/raw/product01"
    assert _why(found, product="product00", arm="real_only") == {seeds}
    assert _why(found, product="product00", arm="mix") == {seeds, drawn}
    assert _why(found, product="product00", kind="score") == {drawn}
    assert _why(found, product="product01", arm="real_only") == {seeds, raw}
    assert _why(found, product="product01", kind="score") == {drawn, raw}


def test_one_products_images_reach_that_product_only(project):
    pretend(project, raw={"images/product01": "other"})
    found = compare(project, "HEAD", "workspace")
    assert {entry["product"] for entry in found["scores"]} == {"product01"}
    assert _why(found) == {"raw images: data/raw/product01"}


def test_code_is_named_by_its_file(project):
    project.path("defect_core/synthesis/batches.py").write_text("two\n")
    pretend(project)
    git(project.root, "commit", "-q", "-a", "-m", "two")
    found = compare(project, "HEAD~1", "HEAD")
    assert _why(found) == {"code: defect_core/synthesis/batches.py"}
    assert not [entry for entry in found["scores"] if entry["arm"] == "real_only"]


def test_what_nothing_has_run_with_is_pending_and_explains_no_score(project):
    project.path("defect_core/synthesis/batches.py").write_text("two\n")
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    for sides in (("HEAD", "workspace"), ("HEAD~1", "HEAD")):
        if "HEAD~1" in sides:
            git(project.root, "commit", "-q", "-a", "-m", "changed, not run")
        found = compare(project, *sides)
        assert not found["scores"] and not found["causes"]
        pending = {(cause["kind"], cause["what"]) for cause in found["pending"]}
        assert pending == {("settings", "synthesize.per_defect"), ("code", "defect_core/synthesis/batches.py")}


def test_a_score_that_moved_although_nothing_upstream_did_is_a_rerun(project):
    text = project.path("dvc.lock").read_text()
    entry = text[text.index("segment@product00-mix") :]
    digest = entry[entry.index("metrics/segment/product00/mix.json") :].split("md5: ")[1][:32]
    project.path("dvc.lock").write_text(text.replace(digest, "f" * 32))
    path = project.path("metrics/segment/product00/mix.json")
    path.write_text(path.read_text().replace('"pixel_ap": 0', '"pixel_ap": 1'))
    found = compare(project, "HEAD", "workspace")
    assert _why(found) == {"rerun: segment@product00-mix"}


def test_a_change_that_left_its_output_as_it_was_is_no_cause(project):
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
    assert _why(compare(project, "HEAD", "workspace")) == {"settings: segment.seeds"}


@pytest.mark.parametrize(("change", "beyond"), [(0.027, False), (0.029, True), (-0.029, True), (-0.027, False)])
def test_a_change_counts_where_it_exceeds_the_joint_spread(project, change, beyond):
    path = project.path("metrics/segment/product00/mix.json")
    content = json.loads(path.read_text())
    content["mean"]["pixel_ap"] += change  # both standard deviations are 0.02: together 0.0283
    path.write_text(json.dumps(content))
    (entry,) = compare(project, "HEAD", "workspace")["scores"]
    assert (entry["score"], entry["beyond"]) == ("pixel_ap", beyond)
    assert entry["change"] == pytest.approx(change) and entry["spread"] == pytest.approx(0.0282843, rel=1e-5)


def test_without_a_spread_nothing_is_said_of_it(project):
    path = project.path("metrics/score/product00/crop-paste.json")
    content = json.loads(path.read_text())
    content["scores"]["pooled"] = {"frechet_lite0": 1.0, "kernel_lite0": 2.0}
    path.write_text(json.dumps(content))
    found = compare(project, "HEAD", "workspace")["scores"]
    assert [(e["score"], e["beyond"], e["before"] is None) for e in found] == [
        ("frechet_lite0", None, False),
        ("kernel_lite0", None, True),
    ]


def test_an_experiment_is_found_by_its_name(project):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    pretend(project)
    git(project.root, "commit", "-q", "-a", "-m", "an experiment")
    git(project.root, "update-ref", "refs/exps/ab/cdef/dizzy-lathe", "HEAD")
    git(project.root, "reset", "-q", "--hard", "HEAD~1")
    found = compare(project, "HEAD", "dizzy-lathe")
    assert found["after"]["commit"] == git(project.root, "rev-parse", "refs/exps/ab/cdef/dizzy-lathe")
    assert _why(found) == {"settings: synthesize.per_defect"}


@pytest.mark.parametrize("name", ["nowhere", "--all", "HEAD~9", ""])
def test_an_unknown_revision_is_one_clear_line(project, name):
    with pytest.raises(InputError) as caught:
        compare(project, name, "workspace")
    assert "neither a git revision nor a DVC experiment" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_checked_out(project):
    (project.path("metrics/segment/product00/mix.json")).unlink()
    before = git(project.root, "status", "--porcelain")
    compare(project, "HEAD", "workspace")
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


def test_the_command_prints_a_table_or_json(project, monkeypatch, capsys):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    pretend(project)
    code, out = _call(monkeypatch, capsys, project.root, "HEAD")
    assert code == 0 and "1. settings: synthesize.per_defect: 8 → 9" in out and "pixel_ap" in out
    code, out = _call(monkeypatch, capsys, project.root, "HEAD", "--json")
    assert code == 0 and json.loads(out)["causes"][0]["what"] == "synthesize.per_defect"


def _into_cache(project, folder):
    """Put a folder into DVC's cache as DVC does; its digest."""
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


def test_the_page_shows_both_sides_where_the_cache_holds_them(project, drawn, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "set"
    shutil.copytree(drawn.path("data/synthetic/bolt/crop-paste"), folder)
    one = _into_cache(project, folder)
    first = next(row for row in read_manifest(folder / "manifest.parquet") if row.accepted)
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


def test_the_page_says_which_set_the_cache_does_not_hold(project, tmp_path, monkeypatch, capsys):
    project = _edit(project, "per_defect: 8", "per_defect: 9")
    pretend(project)
    assert _call(monkeypatch, capsys, project.root, "HEAD", "--html", str(tmp_path / "page"))[0] == 0
    assert "does not hold the set before and after" in (tmp_path / "page/index.html").read_text()


def test_scores_of_the_optional_judges_are_compared_too():
    for path, score in (("classify/nut/mix", "accuracy"), ("segment_unified/mix", "pixel_ap")):
        before, after = ({"mean": {score: value}, "std": {score: 0.01}} for value in (0.5, 0.6))
        (entry,), same = _moved(f"metrics/{path}.json", before, after)
        product = "nut" if "nut" in path else "all products"
        assert (entry["kind"], entry["product"], entry["arm"]) == (path.split("/")[0], product, "mix")
        assert entry["score"] == score and entry["beyond"] and same == 0
        assert _is_metrics(f"metrics/{path}.json")
