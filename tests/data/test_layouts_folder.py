"""The layout `folder`: where masks may be, folders of defect types, and what is ambiguous."""

import unicodedata

import pytest
from source_trees import make_image, make_mask, make_tree, touch

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.data.problems import ProblemLog
from defect_core.data.records import record_rows
from defect_core.errors import InputError, InputErrors


def _found(listing, root):
    """Return (defect type, image, mask) of each defect image, relative to the source."""
    return [
        (item.defect, *(path.relative_to(root).as_posix() for path in (item.image_path, *item.mask_source.paths)))
        for item in listing.items
        if item.mask_source is not None
    ]


@pytest.mark.parametrize("normal", ["good", "OK", "Normal", "defect_free", "normals", "GOOD"])
def test_usual_names_of_the_normal_folder_are_found(tmp_path, normal):
    touch(tmp_path, f"{normal}/1.png", "cut/1.png", "cut/1_mask.png")
    assert [item.defect for item in read_layout(tmp_path, "p").items] == ["good", "cut"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("cut/1.png", "cut/1_mask.png"),
        ("cut/1.jpg", "cut/1.png"),
        ("cut/1.jpg", "cut/masks/1.png"),
        ("cut/images/1.png", "cut/masks/1.png"),
        ("cut/rgb/1.png", "cut/gt/1.png"),
        ("cut/1.png", "masks/cut/1.png"),
        ("cut/1.png", "ground_truth/cut/1_mask.png"),
        ("cut/1.png", "Masks/Cut/1.PNG"),
        ("cut/1.png", "labels/1_label.png"),
        ("cut/1.png", "mask/1.png"),
        ("cut/a.b.png", "cut/a.b_mask.png"),
        ("cut/1 (2).png", "cut/1 (2)_mask.png"),
    ],
)
def test_masks_are_found_in_usual_places(tmp_path, image, mask):
    touch(tmp_path, "good/9.png", image, mask)
    assert _found(read_layout(tmp_path, "p", "folder"), tmp_path) == [("cut", image, mask)]


def test_a_flat_mask_folder_needs_unique_names(tmp_path):
    touch(tmp_path, "good/9.png", "cut/1.png", "dent/1.png", "masks/1.png")
    with pytest.raises(InputErrors) as caught:
        read_layout(tmp_path, "p")
    assert ["1.png: has no mask" in line for line in caught.value.problems] == [True, True]


def test_ng_with_type_folders_gives_their_types(tmp_path):
    root = make_tree("ng types", tmp_path / "p")
    assert _found(read_layout(root, "p"), root) == [
        ("dent", "NG/dent/2.jpg", "NG/dent/2.png"),
        ("scratch", "NG/scratch/1.jpg", "NG/scratch/1.png"),
    ]


def test_ng_with_day_folders_is_one_type(tmp_path):
    touch(tmp_path, "OK/9.jpg", "NG/2024-05-01/1.jpg", "NG/2024-05-01/1.png", "NG/day2/2.jpg", "NG/day2/2.png")
    assert {label for label, _, _ in _found(read_layout(tmp_path, "p"), tmp_path)} == {"NG"}


def test_ng_with_images_and_type_folders_has_both(tmp_path):
    touch(tmp_path, "OK/9.jpg", "NG/1.jpg", "NG/1.png", "NG/dent/2.jpg", "NG/dent/2.png")
    assert {label for label, _, _ in _found(read_layout(tmp_path, "p"), tmp_path)} == {"NG", "dent"}


def test_types_in_names_the_folder_of_the_types(tmp_path):
    touch(
        tmp_path, "OK/9.jpg", "faults/2024/1.jpg", "faults/2024/1.png", "faults/dent/2.jpg", "masks/faults/dent/2.png"
    )
    options = {"types_in": "faults", "good": "OK"}
    assert [label for label, _, _ in _found(read_layout(tmp_path, "p", "folder", options), tmp_path)] == [
        "2024",
        "dent",
    ]


@pytest.mark.parametrize(
    "label", ["划痕", "glue strip", "Größe", "a'b\"c", "${x}", "{brace}", "01", "null", "#1", "🙂"]
)
def test_labels_of_class_folders_are_kept(tmp_path, label):
    touch(tmp_path, "good/9.png", f"{label}/1.png", f"{label}/1_mask.png")
    assert [item.defect for item in read_layout(tmp_path, "p").items] == ["good", label]


def test_labels_and_safe_keys_are_in_the_records(tmp_path):
    for number in range(3):
        make_image(tmp_path / f"p/good/{number}.png", number)
        for offset, label in ((10, "划痕"), (20, "glue strip")):
            make_image(tmp_path / f"p/{label}/{number}.png", offset + number)
            make_mask(tmp_path / f"p/{label}/{number}_mask.png", (5, 255))
    ingest_source(tmp_path / "p", "plate", tmp_path / "out")
    records = record_rows(tmp_path / "out/records.parquet")
    assert {(record.defect, record.label) for record in records if record.mask} == {
        ("type_c70030", "划痕"),
        ("glue_strip_8e1de8", "glue strip"),
    }


def test_all_problems_of_a_source_come_at_once(tmp_path):
    touch(tmp_path, "good/9.png", "cut/1.png", "cut/2.png", "dent/3.bmp", "dent/3.tif")
    (tmp_path / "dent/4.png").symlink_to("nothing")
    problems = ProblemLog()
    read_layout(tmp_path, "p", problems=problems)
    assert len(problems.problems) == 6
    for expected in (
        "cut/1.png: has no mask",
        "cut/2.png: has no mask",
        "3.bmp and 3.tif: the mask is ambiguous",
        "dent/3.tif: has no mask",
        "dent/4.png: a link without a target",
    ):
        assert any(expected in line for line in problems.problems)


def test_many_missing_masks_are_counted_after_twenty(tmp_path):
    touch(tmp_path, "good/9.png", *(f"cut/{number}.png" for number in range(50)))
    with pytest.raises(InputErrors) as caught:
        read_layout(tmp_path, "p")
    assert len(caught.value.problems) == 21
    assert "30 more images of 'cut' have no mask" in caught.value.problems[-1]


def test_missing_masks_may_be_left_out_or_normal(tmp_path):
    touch(tmp_path, "good/9.png", "cut/1.png", "cut/2.png", "cut/2_mask.png")
    listing = read_layout(tmp_path, "p", missing_masks="leave_out")
    assert listing.without_mask == (tmp_path / "cut/1.png",)
    assert (tmp_path / "cut/1.png", "defect image without a mask") in listing.ignored
    assert len(_found(listing, tmp_path)) == 1
    listing = read_layout(tmp_path, "p", missing_masks="normal")
    assert [item.defect for item in listing.items] == ["good", "good", "cut"]


def test_a_second_mask_of_an_image_has_a_reason(tmp_path):
    touch(tmp_path, "good/9.png", "cut/1.png", "cut/1_mask.png", "masks/cut/1.png")
    listing = read_layout(tmp_path, "p")
    assert _found(listing, tmp_path) == [("cut", "cut/1.png", "masks/cut/1.png")]
    assert dict(listing.ignored)[tmp_path / "cut/1_mask.png"] == "second mask of its image; masks/cut/1.png is used"


def test_mask_values_leave_the_label_to_the_mask(tmp_path):
    touch(tmp_path, "good/9.png", "abnormal/1.png", "masks/1.png")
    values = {1: "scratch", 3: "dent"}
    item = read_layout(tmp_path, "p", options={"mask_values": values}).items[1]
    assert item.defect is None and item.mask_source.values == values and item.mask_source.label == "abnormal"


def test_a_region_folder_is_neither_class_nor_mask(tmp_path):
    touch(tmp_path, "good/9.png", "cut/1.png", "cut/1_mask.png", "roi/9.png")
    listing = read_layout(tmp_path, "p", options={"roi": "roi"})
    assert tmp_path / "roi/9.png" in listing.used_files
    assert {item.defect for item in listing.items} == {"good", "cut"}
    with pytest.raises(InputError, match=r"options\.roi: 'region' is not in"):
        read_layout(tmp_path, "p", options={"roi": "region"})


def test_folder_names_of_options_are_compared_in_nfc(tmp_path):
    names = [unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD")]
    touch(tmp_path, f"{names[1]}/1.png", "cut/1.png", "cut/1_mask.png")
    assert read_layout(tmp_path, "p", options={"good": names[0]}).items[0].defect == "good"


def test_two_normal_folders_are_a_problem(tmp_path):
    touch(tmp_path, "MT_OK/1.png", "MT_good/1.png", "MT_cut/1.png", "MT_cut/1_mask.png")
    options = {"good": "MT_OK", "strip_prefix": "MT_"}
    with pytest.raises(InputError, match=r"MT_good: would be a defect type named good beside MT_OK"):
        read_layout(tmp_path, "p", options=options)
