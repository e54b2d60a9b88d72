"""The conversation of `add-product`: its facts, its advice, and that a failure changes nothing."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from product_images import call, listing, write_images

from defect_core.data.records import save_png
from defect_core.project.paths import Project


@pytest.fixture
def add(new_project, monkeypatch, capsys):
    """Call add-product with --json and return the facts."""

    def run(source, *options, name="plate"):
        code, out, error = call(monkeypatch, capsys, "add-product", name, source, "--json", *options)
        assert code == 0, error
        return json.loads(out)

    return run


def test_the_facts_of_a_product(add, new_project, tmp_path):
    facts = add(write_images(tmp_path / "plates", defects=(("dent", 4), ("cut", 6))))
    assert facts["layout"] == "folder" and facts["images"] == 16 and facts["added"]
    assert facts["counts"] == {
        "good": {"label": "good", "images": 6, "train": 4, "test": 2},
        "cut": {"label": "cut", "images": 6, "train": 2, "test": 4},
        "dent": {"label": "dent", "images": 4, "train": 1, "test": 3},
    }
    assert facts["sizes"] == [[40, 40, 16]] and facts["depth"] == "8 bit" and facts["colour"] == "colour"
    masks = facts["masks"]["dent"]
    assert (masks["smallest"], masks["median"], masks["largest"], masks["narrowest"]) == (100, 100, 100, 10)
    assert facts["working_resolution"] == "128x128"
    assert masks["smallest_working"] == 1024 and masks["width_working"] == 32
    assert set(facts["seconds"]) == {"params.yaml", "preset demo", "preset laptop"}
    assert facts["seconds"]["preset demo"] < facts["seconds"]["preset laptop"]
    with Image.open(new_project / facts["sheet"]) as sheet:
        assert sheet.size[0] == 6 * 162 - 2
        assert (255, 0, 170) in {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert (new_project / facts["sheet"]).is_relative_to(new_project / ".defectory/sheets")


def test_the_text_names_every_fact(new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates")
    (source / "notes.doc").write_text("x")
    code, out, _ = call(monkeypatch, capsys, "add-product", "plate", source)
    assert code == 0
    for fact in (
        "layout folder",
        "40x40",
        "8 bit",
        "smallest",
        "128x128",
        "notes.doc",
        "preset laptop",
        "sheets/plate",
    ):
        assert fact in out, fact


def test_a_dry_run_reports_and_changes_nothing(add, new_project, tmp_path):
    before = listing(new_project)
    facts = add(write_images(tmp_path / "plates"), "--dry-run")
    assert facts["counts"]["dent"]["images"] == 4 and not facts["added"] and facts["sheet"] is None
    assert listing(new_project) == before


def test_all_problems_are_named_at_once_and_nothing_changes(new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates")
    (source / "dent/0_mask.png").unlink()
    (source / "dent/1.png").write_bytes(b"no image")
    save_png(np.zeros((40, 40), np.uint8), source / "dent/2_mask.png")
    save_png(np.full((30, 30), 255, np.uint8), source / "dent/3_mask.png")
    (source / "good/0.png").write_bytes(b"")
    before = listing(new_project)
    code, out, error = call(monkeypatch, capsys, "add-product", "plate", source)
    assert code == 2 and out == ""
    lines = error.splitlines()
    assert all(line.startswith("defectory: ") for line in lines)
    for file in ("dent/0.png", "dent/1.png", "dent/2_mask.png", "dent/3_mask.png", "good/0.png"):
        assert sum(file in line for line in lines) >= 1, (file, error)
    assert listing(new_project) == before


def test_wrong_options_are_named_together(new_project, tmp_path, monkeypatch, capsys):
    before = listing(new_project)
    arguments = ["a b", tmp_path / "none", "--empty-masks", "x", "--missing-masks", "y", "-o", "god"]
    code, _, error = call(monkeypatch, capsys, "add-product", *arguments)
    assert code == 2 and len(error.splitlines()) == 5
    assert listing(new_project) == before


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ({"normals": 0}, ["no normal images", "--option good=", "--missing-masks normal"]),
        ({"defects": (("dent", 1),)}, ["'dent' has 1 usable", "expected at least 3", "zero_shot", "--option defects"]),
    ],
    ids=["no normal image", "one defect example"],
)
def test_too_few_images_say_what_can_be_done(new_project, tmp_path, monkeypatch, capsys, images, named):
    code, _, error = call(monkeypatch, capsys, "add-product", "plate", write_images(tmp_path / "plates", **images))
    assert code == 2
    for text in named:
        assert text in error, error


def test_one_normal_image_is_taken_and_named_as_unusual(add, tmp_path):
    unusual = " ".join(add(write_images(tmp_path / "plates", normals=1))["unusual"])
    assert "1 normal image:" in unusual and "no normal image is in test" in unusual


def test_missing_masks_can_be_left_out(add, new_project, tmp_path):
    source = write_images(tmp_path / "plates")
    (source / "dent/0_mask.png").unlink()
    facts = add(source, "--missing-masks", "leave_out")
    assert facts["counts"]["dent"]["images"] == 3
    assert "dent/0.png" in json.dumps([facts["left_out"], facts["ignored"]])
    assert Project(new_project).params.sources["plate"].missing_masks == "leave_out"


def test_a_thin_defect_gets_advice_about_the_resolution(add, tmp_path):
    source = write_images(tmp_path / "plates", size=(600, 1200), spot=4)
    facts = add(source)
    assert facts["masks"]["dent"]["width_working"] == pytest.approx(4 * 128 / 1200, abs=0.1)
    assert "segment.image_size: auto" in facts["advice"][0] and "0.4 px at 128 px" in facts["advice"][0]


def test_a_path_that_is_not_utf_8_is_refused_in_one_line(new_project, tmp_path, monkeypatch, capsys):
    folder = os.fsencode(tmp_path) + b"/pl\xe4te"
    os.mkdir(folder)
    before = listing(new_project)
    code, _, error = call(monkeypatch, capsys, "add-product", "plate", os.fsdecode(folder))
    assert code == 2 and error.count("\n") == 1 and r"pl\xe4te" in error and "ln -s" in error
    assert listing(new_project) == before


@pytest.mark.parametrize("name", ["01", "1e3", "null", "2024-11-30", "screw.v2"])
@pytest.mark.parametrize("folder", ["im ${x} #1", "图像 😀"])
def test_names_and_paths_pass_the_read_back_of_dvc(add, new_project, tmp_path, name, folder):
    source = write_images(tmp_path / folder / "plate")
    facts = add(source, name=name)
    project = Project(new_project)
    assert facts["added"] and project.params.products == (name,)
    assert os.path.samefile(project.source_path(name), source)
    assert str(tmp_path) not in (new_project / "dvc.yaml").read_text() + (new_project / "params.yaml").read_text()


def test_a_failed_read_back_restores_everything(new_project, tmp_path, monkeypatch, capsys):
    (new_project / "extra").mkdir()
    (new_project / "extra/dvc.yaml").write_text("stages: {ingest: {cmd: [}}\n")
    before = listing(new_project)
    code, _, error = call(monkeypatch, capsys, "add-product", "plate", write_images(tmp_path / "plates"))
    assert code == 2 and error.startswith("defectory: dvc.yaml: DVC cannot read it") and error.count("\n") == 1
    assert listing(new_project) == before


def test_names_that_differ_in_case_only_are_refused(add, new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates")
    add(source)
    code, _, error = call(monkeypatch, capsys, "add-product", "Plate", source)
    assert code == 2 and "differs from 'plate' in case only" in error
