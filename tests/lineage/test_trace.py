"""Trace of a synthetic image to its origin, and its exact regeneration."""

import json
import shutil
import sys

import numpy as np
import pytest

from defect_core.cli import app as cli
from defect_core.data.files import folder_digest
from defect_core.data.records import load_image, pixel_digest, save_png
from defect_core.errors import InputError
from defect_core.lineage.trace import trace_image, verify_image
from defect_core.project.paths import Project

FOLDER = "data/synthetic/bolt/crop-paste"


@pytest.fixture
def project(synthesized, tmp_path):
    shutil.copytree(synthesized.root, tmp_path / "project")
    return Project(tmp_path / "project")


def _images(project):
    return sorted(project.path(f"{FOLDER}/images").iterdir())


def test_trace_names_everything_that_the_image_was_made_from(synthesized):
    trace = trace_image(synthesized, _images(synthesized)[0])
    assert (trace["product"], trace["defect"], trace["generator"]["name"]) == ("bolt", "crack", "crop-paste")
    assert trace["generator"]["weights"] == folder_digest(synthesized.path("data/generator/bolt/crop-paste"))
    assert trace["generator"]["config"]["feather"] >= 0
    assert (trace["settings"]["base_seed"], trace["settings"]["backbone"]) == (3, "embedded")
    assert trace["unaltered"] and trace["image"] == f"{FOLDER}/images/{_images(synthesized)[0].name}"
    source, example = trace["source_image"], trace["source_mask"]
    assert pixel_digest(load_image(synthesized.path(source["path"]))) == source["sha256"]
    assert pixel_digest(load_image(synthesized.path(example["of"]["path"]))) == example["of"]["sha256"]
    assert "crack" in example["path"] and synthesized.path(example["path"]).is_file()
    train = {entry["path"] for entry in trace["training"]}
    assert {source["path"], example["of"]["path"]} <= train
    assert sum(entry["defect"] != "good" for entry in trace["training"]) == 4, (
        "half of two defects with four images each"
    )


def test_trace_names_the_commit_and_whether_anything_changed_since(project):
    commit = trace_image(project, _images(project)[0])["commit"]
    assert len(commit["head"]) == 40 and not commit["dirty"] and commit["recorded_in"] == commit["head"]
    with project.path("params.yaml").open("a") as stream:
        stream.write("# changed\n")
    assert trace_image(project, _images(project)[0])["commit"]["dirty"]
    shutil.rmtree(project.path(".git"))
    assert trace_image(project, _images(project)[0])["commit"]["head"] is None


def test_every_image_can_be_generated_again_byte_for_byte(synthesized):
    assert len(_images(synthesized)) == 10
    assert [verify_image(synthesized, image) for image in _images(synthesized)] == [""] * 10


def test_changed_image_mask_or_weights_are_detected(project):
    image = _images(project)[0]
    pixels = load_image(image)
    pixels[0, 0, 0] ^= 1
    save_png(pixels, image)
    assert (
        "image generated again differs" in verify_image(project, image) and not trace_image(project, image)["unaltered"]
    )
    other = _images(project)[1]
    mask = project.path(f"{FOLDER}/masks/{other.name}")
    save_png(np.ones((64, 64), bool), mask)
    assert "mask generated again differs" in verify_image(project, other)
    (project.path("data/generator/bolt/crop-paste") / "more.txt").write_text("x")
    assert "other weights" in verify_image(project, _images(project)[2])
    generator = trace_image(project, _images(project)[2])["generator"]
    assert generator["weights"] != generator["weights_here"] and generator["config"] is None


def test_other_training_images_are_reported(project):
    records = project.path("data/split/bolt.parquet")
    from defect_core.data.records import record_rows, write_records

    remaining = [record for record in record_rows(records) if record.image != record_rows(records)[0].image]
    write_records(remaining, records)
    differences = {verify_image(project, image) for image in _images(project)}
    assert any("other training images" in line or "differs" in line for line in differences)


def test_mask_has_the_trace_of_its_image(synthesized):
    image = _images(synthesized)[3]
    assert trace_image(synthesized, synthesized.path(f"{FOLDER}/masks/{image.name}")) == trace_image(synthesized, image)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/raw/bolt/good/000.png", "not a synthetic image"),
        ("params.yaml", "not a synthetic image"),
        ("nowhere.png", "nowhere.png: file not found"),
        (f"{FOLDER}/manifest.parquet", "not in the manifest of its set"),
        (f"{FOLDER}/images/extra.png", "not in the manifest of its set"),
    ],
)
def test_other_files_are_an_error_of_one_line(project, name, message):
    shutil.copyfile(_images(project)[0], project.path(f"{FOLDER}/images/extra.png"))
    if name.startswith("data/raw"):
        name = next(project.path("data/raw/bolt").rglob("*.png")).relative_to(project.root).as_posix()
    with pytest.raises(InputError) as caught:
        trace_image(project, project.path(name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_command_prints_text_or_json_and_fails_when_bytes_differ(project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["defectory", "trace", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().out

    name = f"{FOLDER}/images/{_images(project)[0].name}"
    code, out = call(name, "--verify")
    assert code == 0 and "generated again: equal bytes" in out and "crop-paste" in out
    code, out = call(name, "--json", "--verify")
    assert code == 0 and json.loads(out)["verified"] == {"same": True, "difference": None}
    (project.root / name).write_bytes(b"".join([(project.root / name).read_bytes(), b" "]))
    assert call(name, "--verify")[0] == 1 and call(name)[0] == 0
