"""Layouts found by `auto`: every data set is read by its own layout, and no detector takes another data set."""

from collections import Counter

import pytest
from source_trees import SIZE, TREES, make_tree, names_below, touch

from defect_core.data.layouts import read_layout
from defect_core.errors import InputError

COUNTS = {  # normal images, then images per defect type; None: the mask source names the types
    "mvtec": {"good": 4, "cut": 3},
    "mpdd": {"good": 4, "hole": 3},
    "btad": {"good": 5, "ko": 3},
    "mvtec ad 2": {"good": 3, "bad": 3},
    "loco": {"good": 3, "logical_anomalies": 2, "structural_anomalies": 2},
    "mvtec 3d": {"good": 2, "hole": 1},
    "visa": {"good": 2, "anomaly": 1},
    "kolektor": {"defect": 6},
    "kolektor 2": {"defect": 6},
    "dagm": {"good": 6, "defect": 2},
    "real iad": {"good": 6, "AK": 2},
    "severstal": {"good": 2, None: 1},
    "folder": {"good": 3, "cut": 3},
    "normal abnormal mask": {"good": 3, "abnormal": 3},
    "ng types": {"good": 2, "scratch": 1, "dent": 1},
    "pairs": {"defect": 4},
    "labelme": {"good": 1, None: 2},
    "coco": {"good": 1, None: 1},
    "yolo": {"good": 1, None: 1},
    "segmentation masks": {None: 3},
    "own export": {"good": 1},
}


@pytest.mark.parametrize("name", TREES)
def test_auto_reads_every_data_set_by_its_layout(name, tmp_path):
    listing = read_layout(make_tree(name, tmp_path / "plug"), "plug")
    assert listing.layout == TREES[name][1]
    assert Counter(item.defect for item in listing.items) == COUNTS[name]


@pytest.mark.parametrize("name", TREES)
def test_every_file_is_used_or_ignored_with_a_reason(name, tmp_path):
    root = make_tree(name, tmp_path / "plug")
    touch(root, "notes.txt", ".DS_Store", "extra/readme.pdf")
    listing = read_layout(root, "plug")
    used = [str(path.relative_to(root)) for path in listing.used_files]
    ignored = [str(path.relative_to(root)) for path, _ in listing.ignored]
    assert sorted(used + ignored) == names_below(root)
    assert all(reason for _, reason in listing.ignored)
    reasons = {str(path.relative_to(root)): reason for path, reason in listing.ignored}
    assert reasons[".DS_Store"] == "hidden"
    assert reasons["extra/readme.pdf"] == "no image file (suffix .pdf)"


@pytest.mark.parametrize("name", TREES)
def test_every_layout_can_be_named(name, tmp_path):
    root = make_tree(name, tmp_path / "plug")
    layout = TREES[name][1].partition(" ")[0]
    listing = read_layout(root, "plug", layout)
    assert {item.image_path for item in listing.items} == {item.image_path for item in read_layout(root, "plug").items}


def test_a_folder_of_several_products_is_refused_with_their_names(tmp_path):
    for name in ("01", "02"):
        make_tree("btad", tmp_path / "set" / name)
    with pytest.raises(InputError, match="has the folders of several products: 01, 02; expected one of these"):
        read_layout(tmp_path / "set", "plug")


def test_an_unknown_tree_is_refused_with_the_known_ones(tmp_path):
    touch(tmp_path / "set", "a/1.png", "b/2.png")
    with pytest.raises(InputError, match=r"layout not recognised; expected mvtec .* folder .* annotation"):
        read_layout(tmp_path / "set", "plug")


def test_an_empty_folder_has_no_images(tmp_path):
    (tmp_path / "set/good").mkdir(parents=True)
    with pytest.raises(InputError, match="set: has no images"):
        read_layout(tmp_path / "set", "plug")


def test_masks_have_priority_over_an_annotation_file(tmp_path):
    root = make_tree("coco", tmp_path / "plug")
    TREES["folder"][0](root)
    listing = read_layout(root, "plug", options={"defects": ["cut"]})
    assert listing.layout == "folder"


def test_day_folders_of_masks_are_not_taken_for_loco(tmp_path):
    root = make_tree("mvtec", tmp_path / "plug")
    touch(root, "test/cut/2024-05-01/7.png", "ground_truth/cut/2024-05-01/7_mask.png")
    listing = read_layout(root, "plug")
    assert listing.layout == "mvtec"
    assert Counter(item.defect for item in listing.items) == {"good": 4, "cut": 4}


def test_labels_come_from_the_annotations(tmp_path):
    for name in ("labelme", "coco", "yolo", "segmentation masks"):
        listing = read_layout(make_tree(name, tmp_path / name / "plug"), "plug")
        found = [item.mask_source.masks(*SIZE) for item in listing.items if item.mask_source is not None]
        assert {label for masks in found for label in masks} == {"scratch"}
