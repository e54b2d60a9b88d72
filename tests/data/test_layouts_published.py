"""Published data sets beside those of MVTec: their splits, groups, labels, masks and what is left out."""

import json

import numpy as np
import pytest
from source_trees import make_image, make_mask, make_tree, touch

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.data.layouts.severstal import RunLengths
from defect_core.data.records import load_mask, record_rows
from defect_core.errors import InputError


def _reasons(listing, root):
    return {path.relative_to(root).as_posix(): reason for path, reason in listing.ignored}


def _hints(listing):
    return sorted({(item.defect, item.split_hint) for item in listing.items})


def test_btad_is_read_with_and_without_the_option_good(tmp_path):
    root = make_tree("btad", tmp_path / "01")
    for layout, options in (("auto", {}), ("auto", {"good": "ok"}), ("mvtec", {"good": "ok"}), ("btad", {})):
        listing = read_layout(root, "plate", layout, options)
        assert _hints(listing) == [("good", "test"), ("good", "train"), ("ko", "")]


def test_mvtec_ad_2_ignores_private_images_with_a_reason(tmp_path):
    root = make_tree("mvtec ad 2", tmp_path / "can")
    listing = read_layout(root, "can")
    assert _hints(listing) == [("bad", ""), ("good", "test"), ("good", "train")]
    reason = "test image without a public annotation"
    assert _reasons(listing, root) == {
        "test_private/000_regular.png": reason,
        "test_private_mixed/000_mixed.png": reason,
    }


def test_mvtec_reads_defects_in_train_with_their_split(tmp_path):
    root = make_tree("mvtec", tmp_path / "plate")
    touch(root, "train/cut/9.png", "ground_truth/train/cut/9_mask.png")
    assert ("cut", "train") in _hints(read_layout(root, "plate"))


def test_kolektor_parts_of_one_item_are_a_group(tmp_path):
    listing = read_layout(make_tree("kolektor", tmp_path / "KolektorSDD"), "plate")
    assert [item.group for item in listing.items] == ["kos00", "kos00", "kos01", "kos01", "kos02", "kos02"]
    assert all(item.empty_mask_is_normal for item in listing.items)


@pytest.mark.parametrize("empty_masks", ["error", "leave_out"])
def test_kolektor_images_with_an_empty_label_are_normal(tmp_path, empty_masks):
    root = tmp_path / "KolektorSDD"
    for item in range(5):
        for part in range(2):
            make_image(root / f"kos{item:02}/Part{part}.jpg", 10 * item + part)
            make_mask(root / f"kos{item:02}/Part{part}_label.bmp", *([(5, 255)] if part == 0 and item < 4 else []))
    options = {"mask_suffix": "_label.bmp", "defect": "crack"}
    summary = ingest_source(root, "plate", tmp_path / "out", options=options, empty_masks=empty_masks)
    assert summary["good"] == 6 and summary["defects"] == {"crack": 4}


def test_kolektor2_keeps_its_split(tmp_path):
    listing = read_layout(make_tree("kolektor 2", tmp_path / "KolektorSDD2"), "plate")
    assert _hints(listing) == [("defect", "test"), ("defect", "train")]


def test_dagm_needs_a_label_for_what_its_table_calls_defective(tmp_path):
    root = make_tree("dagm", tmp_path / "Class1")
    listing = read_layout(root, "plate", options={"defect": "spot"})
    assert _hints(listing) == [("good", "test"), ("good", "train"), ("spot", "test"), ("spot", "train")]
    assert root / "Train/Label/Labels.txt" in listing.used_files
    (root / "Train/Label/0576_label.PNG").unlink()
    touch(root, "Train/Label/0577_label.PNG")
    with pytest.raises(InputError, match=r"0576\.PNG: has no mask; expected .*Labels\.txt calls it defective"):
        read_layout(root, "plate")


def test_real_iad_keeps_split_labels_and_views(tmp_path):
    root = make_tree("real iad", tmp_path / "plug")
    listing = read_layout(root, "plug")
    assert _hints(listing) == [("AK", ""), ("good", "test"), ("good", "train")]
    assert [item.group for item in listing.items if item.defect == "AK"] == ["AK/S0004", "AK/S0004"]


@pytest.mark.parametrize("place", ["plug.json", "realiad_jsons/plug.json"])
def test_real_iad_finds_its_table_beside_the_product(tmp_path, place):
    root = make_tree("real iad", tmp_path / "plug")
    target = tmp_path / place
    target.parent.mkdir(exist_ok=True)
    (root / "plug.json").rename(target)
    listing = read_layout(root, "plug")
    assert listing.layout == "real_iad" and listing.other_files == (target,)


def test_real_iad_names_images_that_are_missing_or_unlisted(tmp_path):
    root = make_tree("real iad", tmp_path / "plug")
    touch(root, "OK/S0009/new.jpg")
    listing = read_layout(root, "plug")
    assert _reasons(listing, root) == {"OK/S0009/new.jpg": "plug.json does not name it"}
    content = json.loads((root / "plug.json").read_text())
    content["test"].append({"anomaly_class": "OK", "image_path": "OK/S0010/x.jpg", "mask_path": None})
    (root / "plug.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"plug\.json: names the image OK/S0010/x\.jpg, which is not in the source"):
        read_layout(root, "plug")


def test_severstal_runs_go_down_the_columns():
    runs = RunLengths(("train.csv",), "a.jpg", {"class_1": "1 2 6 1", "class_2": "12 1", "class_3": ""})
    masks = runs.masks(4, 3)
    expected = np.zeros((4, 3), bool)
    expected[[0, 1, 1], [0, 0, 1]] = True
    assert (masks["class_1"] == expected).all() and list(masks) == ["class_1", "class_2"]
    assert masks["class_2"][3, 2] and masks["class_2"].sum() == 1


@pytest.mark.parametrize("text", ["1 2 3", "a 2", "0 3", "12 2", "5 -1", "99999999999999999999 1"])
def test_severstal_runs_outside_the_image_are_refused(text):
    with pytest.raises(InputError, match=r"train\.csv: a\.jpg, class_1"):
        RunLengths(("train.csv",), "a.jpg", {"class_1": text}).masks(4, 3)


def test_severstal_gives_several_types_per_image(tmp_path):
    root = make_tree("severstal", tmp_path / "steel")
    listing = read_layout(root, "steel", options={"mask_values": {3: "scratch"}})
    assert [item.image_path.name for item in listing.items] == ["b.jpg", "c.jpg", "a.jpg"]
    assert sorted(listing.items[-1].mask_source.masks(*(24, 32))) == ["class_1", "scratch"]
    assert _reasons(listing, root)["test_images/d.jpg"] == "test image without a public annotation"


def test_severstal_reads_the_older_table_and_names_missing_images(tmp_path):
    root = make_tree("severstal", tmp_path / "steel")
    (root / "train.csv").write_text("ImageId_ClassId,EncodedPixels\na.jpg_1,1 2\na.jpg_2,\nz.jpg_1,1 1\n")
    with pytest.raises(InputError, match=r"train\.csv: names the image z\.jpg, which is not in train_images"):
        read_layout(root, "steel")
    touch(root, "train_images/z.jpg")
    assert [item.image_path.name for item in read_layout(root, "steel").items] == ["b.jpg", "c.jpg", "a.jpg", "z.jpg"]


def test_severstal_is_ingested(tmp_path):
    root = tmp_path / "steel"
    for number in range(6):
        make_image(root / f"train_images/{number}.jpg", number)
    rows = [f"{number}.jpg,1,1 3" for number in range(4)]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    ingest_source(root, "steel", tmp_path / "out")
    masks = [record.mask for record in record_rows(tmp_path / "out/records.parquet") if record.mask]
    assert len(masks) == 4 and load_mask(tmp_path / "out" / masks[0]).nonzero()[0].tolist() == [0, 1, 2]


def test_pairs_may_have_any_ending_and_report_what_is_missing(tmp_path):
    touch(tmp_path, "1.jpg", "1-lab.png", "2.jpg", "2-lab.png", "3.jpg")
    with pytest.raises(InputError, match=r"3\.jpg: has no mask; expected 3-lab\.png beside it"):
        read_layout(tmp_path, "p", "pairs", {"mask_suffix": "-lab.png"})
    touch(tmp_path, "3-lab.png")
    assert read_layout(tmp_path, "p", "auto", {"mask_suffix": "-lab.png"}).layout == "pairs"


def test_point_clouds_have_a_reason(tmp_path):
    root = make_tree("mvtec 3d", tmp_path / "bagel")
    assert _reasons(read_layout(root, "bagel"), root)["train/good/xyz/000.tiff"] == "point cloud"
