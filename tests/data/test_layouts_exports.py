"""Exports of Defectory as a source: normal images are read, synthetic images never."""

import json

import pytest
from source_trees import TREES, make_image, make_tree, own_export, touch

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.errors import InputError
from defect_core.export.formats import FORMATS, ExportItem
from defect_core.export.marker import write_marker


@pytest.mark.parametrize("layout", ["mvtec", "coco", "yolo"])
def test_synthetic_images_of_an_export_are_left_out(tmp_path, layout):
    own_export(tmp_path, layout)
    listing = read_layout(tmp_path, "plug")
    assert listing.layout == "own_export"
    assert [(item.defect, item.image_path.name, item.split_hint) for item in listing.items] == [
        ("good", "good-1.png", "")
    ]
    assert [path.name for path in listing.synthetic] == ["crop-paste-0.png"]
    assert dict(listing.ignored)[listing.synthetic[0]] == "synthetic image of a Defectory export"


@pytest.mark.parametrize("layout", ["mvtec", "coco", "yolo"])
def test_an_export_is_recognised_by_what_the_exporter_writes(tmp_path, layout):
    for number in range(4):
        make_image(tmp_path / f"raw/{number}.png", number)
    make_image(tmp_path / "raw/mask.png", 9)
    items = [ExportItem(f"good-{number}", "good", tmp_path / f"raw/{number}.png", None) for number in range(3)]
    items.append(ExportItem("crop-paste-cut-0", "cut", tmp_path / "raw/3.png", tmp_path / "raw/mask.png"))
    FORMATS[layout](items, tmp_path / "out/plug")
    write_marker(items, layout, "plug", tmp_path / "out/plug")
    listing = read_layout(tmp_path / "out/plug", "plug")
    assert len(listing.items) == 3 and len(listing.synthetic) == 1
    assert {item.defect for item in listing.items} == {"good"}


def test_an_export_without_a_marker_is_recognised_by_its_card(tmp_path):
    own_export(tmp_path / "out/plug", "yolo")
    (tmp_path / "out/plug/defectory-export.json").unlink()
    (tmp_path / "out/README.md").write_text("# Synthetic defects of plug\n\nImage-mask pairs.\n")
    listing = read_layout(tmp_path / "out/plug", "plug")
    assert listing.layout == "own_export"
    assert [item.image_path.name for item in listing.items] == ["good-1.png"]
    assert [path.name for path in listing.synthetic] == ["crop-paste-0.png"]


def test_an_export_inside_a_source_gives_no_defect(tmp_path):
    root = make_tree("folder", tmp_path / "plate")
    own_export(root / "cut/more", "mvtec")
    listing = read_layout(root, "plate", missing_masks="leave_out")
    assert [path.name for path in listing.synthetic] == ["crop-paste-0.png"]
    assert not {item.image_path for item in listing.items} & set(listing.synthetic)


def test_own_images_in_the_folder_of_an_export_are_refused(tmp_path):
    own_export(tmp_path, "mvtec")
    touch(tmp_path, "test/cut/mine.png")
    with pytest.raises(InputError, match=r"mine\.png: is in the folder of a Defectory export, .* another folder"):
        read_layout(tmp_path, "plug")


def test_exports_of_several_products_are_refused(tmp_path):
    own_export(tmp_path / "nut")
    own_export(tmp_path / "bolt")
    with pytest.raises(InputError, match=r"has exports of several products: bolt, nut; expected one of them"):
        read_layout(tmp_path, "plug")


def test_a_damaged_marker_does_not_hide_images(tmp_path):
    TREES["folder"][0](tmp_path)
    (tmp_path / "defectory-export.json").write_text("{")
    assert len(read_layout(tmp_path, "plug").items) == 6


def test_an_export_is_ingested_without_defects(tmp_path):
    root = tmp_path / "plug"
    real, synthetic = [f"images/good-{number}.png" for number in range(3)], "images/crop-paste-0.png"
    for number, name in enumerate([*real, synthetic]):
        make_image(root / name, number)
    content = {"format": "coco", "product": "plug", "real": real, "synthetic": [synthetic]}
    (root / "defectory-export.json").write_text(json.dumps(content))
    summary = ingest_source(root, "plug", tmp_path / "out")
    assert summary["good"] == 3 and summary["defects"] == {}
