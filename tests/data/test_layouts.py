"""Folder layouts: which files they read, and what `ingest_source` writes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.data.records import load_image, load_mask, pixel_digest, record_rows, save_png
from defect_core.data.splits import split_records
from defect_core.errors import InputError, InputErrors

TILE = {"good": "MT_Free", "subfolder": "Imgs", "mask_suffix": ".png", "strip_prefix": "MT_"}


def _picture(path, number, size=(24, 32)):
    """Write an image that differs by number, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _mask(path, size=(24, 32), empty=False):
    mask = np.zeros(size, dtype=bool)
    if not empty:
        mask[5:9, 6:12] = True
    save_png(mask, path)


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "source"
    for i in range(4):
        _picture(root / f"train/good/{i:03}.png", i)
    for i in range(2):
        _picture(root / f"test/good/{i:03}.png", 10 + i)
    for i in (0, 2, 9, 10):  # gaps in the numbers, and one jpg
        _picture(root / f"test/cut/{i}.{'jpg' if i == 9 else 'png'}", 20 + i)
        _mask(root / f"ground_truth/cut/{i}_mask.png")
    for i in range(3):
        _picture(root / f"test/dent/{i:03}.png", 40 + i)
        _mask(root / f"ground_truth/dent/{i:03}.png")
    (root / "license.txt").write_text("x")
    return root


@pytest.fixture
def tile(tmp_path):
    root = tmp_path / "tiles"
    for number, name in enumerate(["MT_Free", "MT_Crack", "MT_Fray"]):
        for i in range(5):
            _picture(root / name / "Imgs" / f"exp{i}_num_{i}.jpg", 100 * number + i, (20 + i, 30))
            _mask(root / name / "Imgs" / f"exp{i}_num_{i}.png", (20 + i, 30), empty=number == 0)
    return root


def _files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_mvtec_layout_is_ingested_completely(mvtec, tmp_path):
    items = read_layout(mvtec, "p").items
    assert [(i.defect, i.image_path.name, i.split_hint) for i in items if i.defect != "dent"] == [
        *(("good", f"{i:03}.png", "train") for i in range(4)),
        *(("good", f"{i:03}.png", "test") for i in range(2)),
        *(("cut", name, "") for name in ("0.png", "2.png", "9.jpg", "10.png")),
    ]
    summary = ingest_source(mvtec, "p", tmp_path / "out" / "p")
    assert summary["layout"] == "mvtec" and summary["defects"] == {"cut": 4, "dent": 3}
    assert summary["splits"] == {"test": 2, "train": 4}
    out = tmp_path / "out" / "p"
    records = record_rows(out / "records.parquet")
    sources = {r.source: r for r in records}
    assert {r.source for r in records if r.defect == "good" and r.split == "test"} == {
        "test/good/000.png",
        "test/good/001.png",
    }
    assert (out / sources["test/cut/9.jpg"].image).read_bytes() == (mvtec / "test/cut/9.jpg").read_bytes()
    for r in records:
        assert r.image == f"images/{r.sha256[:12]}{r.image[-4:]}" and r.depth == "8 bit" and r.label == r.defect
        assert r.mask in (None, f"masks/{r.defect}/{r.sha256[:12]}.png")
        assert r.sha256 == pixel_digest(load_image(out / r.image)) and (r.width, r.height) == (32, 24)
        assert (r.mask is None) == (r.defect == "good")
        if r.mask:
            assert load_mask(out / r.mask).sum() == 24
    links = [f"masks/{r.defect}/{r.source.split('/')[-1].split('.')[0]}.png" for r in records if r.mask]
    assert _files(out) == sorted(
        [r.image for r in records]
        + [r.mask for r in records if r.mask]
        + links
        + ["left_out.json", "records.parquet", "thumbnails.safetensors"]
    )
    done = split_records(records, "half")
    assert {r.source for r in done if r.defect == "cut" and r.split == "train"} == {"test/cut/0.png", "test/cut/2.png"}


def test_ingestion_is_reproducible(mvtec, tmp_path):
    for name in ("a", "b", "b"):  # the second b replaces the first
        ingest_source(mvtec, "p", tmp_path / "out" / name)
    for name in _files(tmp_path / "out/a"):
        assert (tmp_path / "out/a" / name).read_bytes() == (tmp_path / "out/b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_magnetic_tile_is_read_by_options_alone(tile, tmp_path):
    _mask(tile / "MT_Fray/Imgs/exp4_num_4.png", (24, 30), empty=True)
    with pytest.raises(InputError, match=r"exp4_num_4\.png: the mask is empty"):
        ingest_source(tile, "tile", tmp_path / "out", options=TILE)
    summary = ingest_source(tile, "tile", tmp_path / "out", options=TILE, empty_masks="leave_out")
    assert summary["layout"] == "folder" and summary["good"] == 5 and summary["defects"] == {"Crack": 5, "Fray": 4}
    assert summary["left_out"] == [{"image": "MT_Fray/Imgs/exp4_num_4.jpg", "reason": "empty mask"}]
    assert json.loads((tmp_path / "out/left_out.json").read_text())["left_out"] == summary["left_out"]
    only = ingest_source(tile, "tile", tmp_path / "out", "folder", {**TILE, "defects": ["Crack"]})
    assert only["defects"] == {"Crack": 5} and only["left_out"] == []


def test_same_stem_masks_need_no_option(tile):
    options = {key: value for key, value in TILE.items() if key != "mask_suffix"}
    items = read_layout(tile, "tile", "folder", options).items
    assert len(items) == 15 and all(item.image_path.suffix == ".jpg" for item in items)
    assert all(item.mask_source.paths[0].suffix == ".png" for item in items if item.defect != "good")


@pytest.mark.parametrize("place", ["beside", "masks", "annotated", "inside"])
def test_folder_layout_finds_masks(tmp_path, place):
    root = tmp_path / "source"
    names = ["IMG 7 (a).PNG", "b.tif", "c.c.bmp"]
    for number, folder in enumerate(["OK", "hole"]):
        for i, name in enumerate(names):
            _picture(root / folder / name, 10 * number + i)
    for name in names:
        stem = name.rpartition(".")[0]
        target = {
            "beside": root / "hole" / f"{stem}_mask.png",
            "masks": root / "masks/hole" / f"{stem}.png",
            "annotated": root / "annotated/hole" / f"{stem}_mask.png",
            "inside": root / "hole/seg" / f"{stem}.png",
        }[place]
        _mask(target)
    options = {"annotated": {"masks": "annotated"}, "inside": {"masks": "seg"}}.get(place)
    items = read_layout(root, "p", options=options).items
    assert [(item.defect, item.image_path.name) for item in items] == [
        (defect, name) for defect in ("good", "hole") for name in names
    ]
    summary = ingest_source(root, "p", tmp_path / "out", options=options)
    assert summary["images"] == 6
    assert "hole/IMG 7 (a).PNG" in {r.source for r in record_rows(tmp_path / "out/records.parquet")}


def test_masks_of_normal_images_are_optional(tile, tmp_path):
    for path in (tile / "MT_Free/Imgs").glob("*.png"):
        path.unlink()
    assert ingest_source(tile, "tile", tmp_path / "out", options=TILE)["good"] == 5


def test_duplicates_are_left_out_and_keep_all_defect_types(mvtec, tmp_path):
    with Image.open(mvtec / "test/cut/2.png") as image:
        image.save(mvtec / "test/cut/77.bmp")  # the same pixels in another format
    _mask(mvtec / "ground_truth/cut/77_mask.png")
    summary = ingest_source(mvtec, "p", tmp_path / "out")
    assert summary["duplicates"] == [{"image": "test/cut/77.bmp", "same_as": "test/cut/2.png"}]
    assert summary["defects"]["cut"] == 4
    shutil.copy(mvtec / "test/cut/2.png", mvtec / "test/dent/2_again.png")
    _mask(mvtec / "ground_truth/dent/2_again_mask.png")
    summary = ingest_source(mvtec, "p", tmp_path / "out2")
    assert summary["defects"] == {"cut": 4, "dent": 4} and summary["images"] == 6 + 4 + 3
    rows = [r for r in record_rows(tmp_path / "out2/records.parquet") if r.source == "test/cut/2.png"]
    assert [r.defect for r in rows] == ["cut", "dent"] and rows[0].image == rows[1].image
    assert "the same image is in several defect types" in "".join(summary["notes"])
    shutil.copy(mvtec / "test/cut/2.png", mvtec / "train/good/2.png")
    with pytest.raises(InputError, match=r"2\.png \(cut\) and .*good/2\.png \(good\): the same image is a normal and"):
        ingest_source(mvtec, "p", tmp_path / "out3")


def _broken(root, what):
    """Damage the MVTec tree; return the arguments of `ingest_source` and a pattern of the expected error."""
    if what == "no mask":
        (root / "ground_truth/cut/9_mask.png").unlink()
        return {}, r"cut/9\.jpg: has no mask; expected .*9_mask\.png"
    if what == "mask size":
        _mask(root / "ground_truth/cut/9_mask.png", (24, 30))
        return {}, r"9_mask\.png: 30x24 pixels, its image 32x24; expected the same size"
    if what == "empty mask":
        _mask(root / "ground_truth/cut/9_mask.png", empty=True)
        return {}, r"9_mask\.png: the mask is empty"
    if what == "empty masks leave too few":
        for i in (0, 2):
            _mask(root / f"ground_truth/cut/{i}_mask.png", empty=True)
        return {"empty_masks": "leave_out"}, "'cut' has 2 usable"
    if what == "broken image":
        (root / "test/dent/001.png").write_bytes(b"no")
        return {}, r"dent/001\.png: not a readable image"
    if what == "broken normal image":
        (root / "train/good/001.png").write_bytes(b"")
        return {}, r"good/001\.png: not a readable image"
    if what == "tiny image":
        _picture(root / "train/good/001.png", 1, (8, 8))
        return {}, r"good/001\.png: 8x8 pixels; expected at least 16"
    if what == "too few":
        return {"min_per_defect": 4}, "'dent' has 3 usable example.*at least 4"
    if what == "no normal images":
        for path in root.glob("*/good/*.png"):
            path.unlink()
        return {}, "no normal images found; expected some in train/good"
    if what == "no defects":
        shutil.rmtree(root / "test/cut")
        shutil.rmtree(root / "test/dent")
        return {}, "no defect images found"
    if what == "not recognised":
        (root / "train").rename(root / "training")
        return {}, r"source: .*; expected"
    return {
        "unknown layout": ({"layout": "coco"}, "unknown layout 'coco'; expected one of auto, .*mvtec, .* demo"),
        "unknown option": ({"options": {"godo": "x"}}, "options.godo: unknown layout option; expected one of good"),
        "option type": ({"options": {"good": 3}}, "options.good: .*string.*found 3"),
        "option outside": ({"options": {"masks": "../x"}}, "options.masks: '../x'; expected a path inside"),
        "option of other layout": ({"options": {"subfolder": "x"}}, "options.subfolder: not an option of layout mvtec"),
        "unknown defect": ({"options": {"defects": ["hole"]}}, "no defect type 'hole'.*: cut, dent"),
        "empty_masks": ({"empty_masks": "skip"}, "empty_masks: 'skip'; expected error or leave_out"),
        "product": ({"product": "a|b"}, "'a|b' is not a usable name".replace("|", r"\|")),
        "demo with path": ({"layout": "demo"}, "layout demo renders its own images"),
        "no source": ({"source": None}, "needs a source folder"),
        "no folder": ({"source": root / "none"}, "none: not a folder"),
    }[what]


@pytest.mark.parametrize(
    "what",
    """no mask|mask size|empty mask|empty masks leave too few|broken image|broken normal image|tiny image|too few
    no normal images|no defects|not recognised|unknown layout|unknown option|option type|option outside
    option of other layout|unknown defect|empty_masks|product|demo with path|no source|no folder""".replace(
        "\n    ", "|"
    ).split("|"),
)
def test_bad_input_gives_one_line_and_writes_nothing(mvtec, tmp_path, what):
    arguments, expected = _broken(mvtec, what)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=expected) as caught:
        ingest_source(**{"source": mvtec, "product": "p", "out": tmp_path / "out/p", **arguments})
    problems = caught.value.problems if isinstance(caught.value, InputErrors) else [str(caught.value)]
    assert not any("\n" in problem for problem in problems)
    assert not list((tmp_path / "out").iterdir())


def test_failed_ingestion_keeps_the_earlier_output(mvtec, tmp_path):
    ingest_source(mvtec, "p", tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in _files(tmp_path / "out")}
    (mvtec / "test/dent/001.png").write_bytes(b"no")
    with pytest.raises(InputError):
        ingest_source(mvtec, "p", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in _files(tmp_path / "out")} == before


def test_foreign_folders_are_not_overwritten(mvtec, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(InputError, match="mine: exists and was not written by ingest"):
        ingest_source(mvtec, "p", tmp_path / "mine")
    for out in (mvtec, mvtec / "out", tmp_path):
        with pytest.raises(InputError, match="overlaps the source"):
            ingest_source(mvtec, "p", out)


def test_ambiguous_masks_require_an_option(tmp_path):
    root = tmp_path / "source"
    for folder in ("good", "hole"):
        for suffix in ("bmp", "tif"):
            _picture(root / folder / f"a.{suffix}", 1)
    with pytest.raises(InputError, match=r"a\.bmp and a\.tif: the mask is ambiguous; expected the option mask_suffix"):
        read_layout(root, "p")
