"""From a synthetic image to what made it, and back to the very same bytes."""

import json
import shutil
import sys

import numpy as np
import pytest

from defect_core.cli import app as cli
from defect_core.data.records import load_image, pixel_digest, save_png
from defect_core.errors import InputError
from defect_core.lineage.trace import trace, verify
from defect_core.project.paths import Project, folder_digest

FOLDER = "data/synthetic/bolt/crop-paste"


@pytest.fixture
def project(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / "project")
    return Project(tmp_path / "project")


def _images(project):
    return sorted(project.path(f"{FOLDER}/images").iterdir())


def test_a_trace_names_everything_that_made_the_image(drawn):
    found = trace(drawn, _images(drawn)[0])
    assert (found["product"], found["defect"], found["generator"]["name"]) == ("bolt", "crack", "crop-paste")
    assert found["generator"]["weights"] == folder_digest(drawn.path("data/generator/bolt/crop-paste"))
    assert found["generator"]["config"]["feather"] >= 0
    assert (found["settings"]["base_seed"], found["settings"]["backbone"]) == (3, "embedded")
    assert found["unaltered"] and found["image"] == f"{FOLDER}/images/{_images(drawn)[0].name}"
    source, example = found["source_image"], found["source_mask"]
    assert pixel_digest(load_image(drawn.path(source["path"]))) == source["sha256"]
    assert pixel_digest(load_image(drawn.path(example["of"]["path"]))) == example["of"]["sha256"]
    assert "crack" in example["path"] and drawn.path(example["path"]).is_file()
    train = {entry["path"] for entry in found["training"]}
    assert {source["path"], example["of"]["path"]} <= train
    assert sum(entry["defect"] != "good" for entry in found["training"]) == 4, "half of two times four"


def test_a_trace_names_the_commit_and_whether_anything_changed_since(project):
    commit = trace(project, _images(project)[0])["commit"]
    assert len(commit["head"]) == 40 and not commit["dirty"] and commit["recorded_in"] == commit["head"]
    with project.path("params.yaml").open("a") as stream:
        stream.write("# changed\n")
    assert trace(project, _images(project)[0])["commit"]["dirty"]
    shutil.rmtree(project.path(".git"))
    assert trace(project, _images(project)[0])["commit"]["head"] is None


def test_every_image_can_be_drawn_again_byte_for_byte(drawn):
    assert len(_images(drawn)) == 10
    assert [verify(drawn, image) for image in _images(drawn)] == [""] * 10


def test_a_changed_image_weight_or_source_is_found_out(project):
    image = _images(project)[0]
    pixels = load_image(image)
    pixels[0, 0, 0] ^= 1
    save_png(pixels, image)
    assert "image drawn again differs" in verify(project, image) and not trace(project, image)["unaltered"]
    other = _images(project)[1]
    mask = project.path(f"{FOLDER}/masks/{other.name}")
    save_png(np.ones((64, 64), bool), mask)
    assert "mask drawn again differs" in verify(project, other)
    (project.path("data/generator/bolt/crop-paste") / "more.txt").write_text("x")
    assert "other weights" in verify(project, _images(project)[2])
    found = trace(project, _images(project)[2])["generator"]
    assert found["weights"] != found["weights_here"] and found["config"] is None


def test_new_real_images_make_the_drawing_again_impossible_and_say_so(project):
    records = project.path("data/split/bolt.parquet")
    from defect_core.data.records import read_records, write_records

    kept = [record for record in read_records(records) if record.image != read_records(records)[0].image]
    write_records(kept, records)
    said = {verify(project, image) for image in _images(project)}
    assert any("other training images" in line or "differs" in line for line in said)


def test_a_mask_leads_to_the_same_trace(drawn):
    image = _images(drawn)[3]
    assert trace(drawn, drawn.path(f"{FOLDER}/masks/{image.name}")) == trace(drawn, image)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/raw/bolt/good/000.png", "not a synthetic image"),
        ("params.yaml", "not a synthetic image"),
        ("nowhere.png", "nowhere.png: not found"),
        (f"{FOLDER}/manifest.parquet", "not in the manifest beside it"),
        (f"{FOLDER}/images/extra.png", "not in the manifest beside it"),
    ],
)
def test_anything_else_is_one_clear_line(project, name, message):
    shutil.copyfile(_images(project)[0], project.path(f"{FOLDER}/images/extra.png"))
    if name.startswith("data/raw"):
        name = next(project.path("data/raw/bolt").rglob("*.png")).relative_to(project.root).as_posix()
    with pytest.raises(InputError) as caught:
        trace(project, project.path(name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_speaks_both_ways_and_fails_where_bytes_differ(project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["defectory", "trace", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().out

    name = f"{FOLDER}/images/{_images(project)[0].name}"
    code, out = call(name, "--verify")
    assert code == 0 and "drawn again: the same bytes" in out and "crop-paste" in out
    code, out = call(name, "--json", "--verify")
    assert code == 0 and json.loads(out)["verified"] == {"same": True, "difference": None}
    (project.root / name).write_bytes(b"".join([(project.root / name).read_bytes(), b" "]))
    assert call(name, "--verify")[0] == 1 and call(name)[0] == 0
