"""Exported sets: unchanged pixels, exact masks, and a dataset card."""

import json
import sys

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from defect_core.cli import app as cli
from defect_core.data.demo import render_demo_image
from defect_core.data.layouts import ingest_source
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.masks import components
from defect_core.data.records import Record, load_image, load_mask, record_rows, save_png, write_records
from defect_core.errors import InputError
from defect_core.export import FORMATS, export_dataset, mask_to_polygons
from defect_core.project.paths import Project

PARAMS = """\
products: [bolt, nut]
sources: {bolt: {layout: demo}, nut: {layout: demo}}
generators: [crop-paste, disentangled-inversion]
arms: [real_only, crop-paste, mix]
release: {}
"""
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def _fill(polygon, shape):
    """Return the mask bool [H, W] of a polygon, rasterised as YOLO trainers do."""
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.asarray(polygon, np.int32)], 1) > 0


@given(MASKS)
def test_polygons_rasterise_to_their_components_with_holes_filled(mask):
    parts = components(mask)
    polygons = mask_to_polygons(mask)
    assert len(polygons) == len(parts)
    for polygon, component in zip(polygons, parts, strict=True):
        part = np.zeros_like(mask)
        component.add_to(part)
        assert len(polygon) >= 3
        assert (_fill(polygon, mask.shape) == ndimage.binary_fill_holes(part)).all()


@pytest.mark.parametrize(("product", "defect"), [("weave", "snag"), ("weave", "stain"), ("flange", "scratch")])
def test_polygons_of_rendered_defects_have_an_iou_of_099(product, defect):
    for index in range(6):
        mask = ndimage.binary_fill_holes(render_demo_image(product, defect, 0, index).mask)
        union = np.any([_fill(polygon, mask.shape) for polygon in mask_to_polygons(mask)], axis=0)
        assert (union & mask).sum() / (union | mask).sum() >= 0.99


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    root.joinpath("params.yaml").write_text(PARAMS)
    project = Project(root)
    rng = np.random.default_rng(0)
    records = []
    for number in range(3):
        save_png(rng.integers(0, 255, (20, 30, 3), np.uint8), project.path(f"data/raw/bolt/good/{number}.png"))
        side = "train" if number < 2 else "test"
        records.append(Record("bolt", "good", f"good/{number}.png", None, side, str(number), 30, 20))
    write_records(records, project.path("data/split/bolt.parquet"))
    for generator in ("crop-paste", "disentangled-inversion"):
        rows = []
        for number, defect in enumerate(("dent", "dent", "stain", "stain")):
            mask = np.zeros((20, 30), bool)
            mask[4:9, 3 + number : 12], mask[6, 6] = True, False
            mask[15, 20:25] = True
            for kind, content in (("images", rng.integers(0, 255, (20, 30, 3), np.uint8)), ("masks", mask)):
                save_png(content, project.path(f"data/release/bolt/{generator}/{kind}/{defect}-{number}.png"))
            rows.append(
                ManifestRow(
                    sample_id=f"{defect}-{number}", product="bolt", defect=defect,
                    image=f"images/{defect}-{number}.png", mask=f"masks/{defect}-{number}.png", generator=generator,
                    seed=1, source_image=None, source_mask=None, prompt=None, strength=None, mask_area=5, quality=1.0,
                    accepted=number != 3, reject_reason=None, model_digest=None, image_sha256=None,
                )
            )  # fmt: skip
        write_manifest(rows, project.path(f"data/release/bolt/{generator}/manifest.parquet"))
    release = {
        "arm": "mix", "sets": {"crop-paste": "ab" * 32, "disentangled-inversion": "cd" * 32}, "protocol": {},
        "mean": {"pixel_ap": 0.5}, "std": {"pixel_ap": 0.01}, "backbone": "embedded",
    }  # fmt: skip
    project.path("data/release/bolt/release.json").write_text(json.dumps(release))
    project.path("data/release/nut").mkdir(parents=True)
    project.path("data/release/nut/release.json").write_text('{"arm": null, "sets": {}}')
    record = {"decision": "promoted", "real_only": {"arm": "real_only", "mean": {"pixel_ap": 0.4}, "std": {}}}
    project.path("metrics/release").mkdir(parents=True)
    project.path("metrics/release/bolt.json").write_text(json.dumps(record))
    return project


def _assert_same_pair(project, generator, name, image, mask):
    folder = project.path(f"data/release/bolt/{generator}")
    assert (load_image(image) == load_image(folder / f"images/{name}.png")).all()
    assert (mask == load_mask(folder / f"masks/{name}.png")).all()


def test_exported_pairs_are_unchanged_in_the_mvtec_layout(project, tmp_path):
    counts = export_dataset(project, "mvtec", tmp_path / "out")
    assert counts == {"bolt": {"good": 2, "dent": 4, "stain": 2}}
    folder = tmp_path / "out/bolt"
    mask = load_mask(folder / "ground_truth/dent/crop-paste-dent-1_mask.png")
    _assert_same_pair(project, "crop-paste", "dent-1", folder / "test/dent/crop-paste-dent-1.png", mask)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("named", ["auto", "mvtec"])
def test_synthetic_images_of_an_export_are_never_ingested_as_real(project, tmp_path, layout, named):
    export_dataset(project, layout, tmp_path / "out")
    summary = ingest_source(tmp_path / "out/bolt", "bolt", tmp_path / "again", layout=named)
    records = record_rows(tmp_path / "again/records.parquet")
    assert [record.defect for record in records] == ["good"] * 2
    reasons = [entry["reason"] for entry in summary["ignored"]]
    assert reasons.count("synthetic image of a Defectory export") == 6


def test_coco_masks_are_exact_and_ids_are_consistent(project, tmp_path):
    export_dataset(project, "coco", tmp_path / "out", ["bolt"])
    folder = tmp_path / "out/bolt"
    content = json.loads((folder / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert len(names) == 8 and {c["name"] for c in content["categories"]} == {"dent", "stain"}
    number = next(i for i, name in names.items() if name == "disentangled-inversion-stain-2.png")
    entries = [entry for entry in content["annotations"] if entry["image_id"] == number]
    mask = np.zeros((20, 30), bool)
    for entry in entries:
        lengths = entry["segmentation"]["counts"]
        spot = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape((20, 30), order="F")
        x, y, width, height = entry["bbox"]
        assert spot[y : y + height, x : x + width].sum() == spot.sum() == entry["area"]
        assert spot[y].any() and spot[y + height - 1].any() and spot[:, x].any() and spot[:, x + width - 1].any()
        mask |= spot
    assert len(entries) == 2
    _assert_same_pair(project, "disentangled-inversion", "stain-2", folder / "images" / names[number], mask)
    assert {entry["image_id"] for entry in content["annotations"]} < set(names)


def test_yolo_polygons_give_the_mask_again(project, tmp_path):
    export_dataset(project, "yolo", tmp_path / "out")
    folder = tmp_path / "out/bolt"
    images, labels = ({p.stem for p in (folder / kind).iterdir()} for kind in ("images", "labels"))
    assert images == labels and len(images) == 8
    assert not (folder / "labels/good-0.txt").read_text()
    lines = (folder / "labels/crop-paste-stain-2.txt").read_text().splitlines()
    mask = np.zeros((20, 30), bool)
    for line in lines:
        kind, *values = line.split()
        points = np.array(values, float).reshape(-1, 2) * (30, 20)
        assert kind == "1"
        mask |= _fill(points, (20, 30))
    expected = load_mask(project.path("data/release/bolt/crop-paste/masks/stain-2.png"))
    assert (mask == ndimage.binary_fill_holes(expected)).all() and (mask != expected).sum() == 1
    content = yaml.safe_load((folder / "data.yaml").read_text())
    assert content["names"][1] == "stain"
    assert "path" not in content  # Ultralytics resolves it from the working directory, and without it from the file


@pytest.mark.parametrize("layout", FORMATS)
def test_card_describes_the_set_without_local_paths(project, tmp_path, layout):
    export_dataset(project, layout, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for text in (
        "| bolt | normal (real) | 2 |",
        "| bolt | dent | 4 |",
        "| bolt | crop-paste | " + "ab" * 8 + " | none | – |",
        "embedded | Apache-2.0",
        "| bolt | real defects only | 40.0 |",
        "| bolt | and mix | 50.0 ± 1.0 |",
        "## Limits",
    ):
        assert text in card, text
    assert str(tmp_path) not in card


def test_licence_comes_from_the_model_card(project, tmp_path):
    path = project.path("data/release/bolt/release.json")
    path.write_text(path.read_text().replace("embedded", "weights/sd"))
    export_dataset(project, "coco", tmp_path / "one")
    assert "weights/sd | unknown" in (tmp_path / "one/README.md").read_text()
    project.path("weights/sd").mkdir(parents=True)
    project.path("weights/sd/README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    export_dataset(project, "coco", tmp_path / "two")
    assert "weights/sd | creativeml-openrail-m" in (tmp_path / "two/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("voc", "out"), "format 'voc' is unknown"),
        (("coco", "out", ["screw"]), "product 'screw' is not in params.yaml"),
        (("coco", "out", ["nut"]), "nut: nothing is released"),
        (("coco", "project"), "exists and is not an empty folder"),
    ],
)
def test_errors_are_one_line_and_write_nothing(project, tmp_path, arguments, message):
    layout, folder, *rest = arguments
    with pytest.raises(InputError) as caught:
        export_dataset(project, layout, tmp_path / folder, *rest)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_export_command_prints_the_counts(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    monkeypatch.setattr(sys, "argv", ["defectory", "export", "--format", "yolo", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and "bolt: 4 dent, 2 good, 2 stain" in capsys.readouterr().out
