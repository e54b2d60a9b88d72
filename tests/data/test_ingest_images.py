"""What ingestion takes from a source: ids, several defect types, inverted and swapped masks, all problems at once."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from defect_core.data.images import turn_upright
from defect_core.data.layouts import ingest_source
from defect_core.data.records import image_groups, load_image, load_mask, record_rows
from defect_core.data.splits import split_records
from defect_core.errors import InputError, InputErrors

SIZE = (48, 64)
SPOT = (slice(8, 20), slice(10, 30))
TRUTH = np.zeros(SIZE, bool)
TRUTH[SPOT] = True


def picture(number, spot=False, size=SIZE):
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: size[0], : size[1]]
    image = 150 + 20 * np.sin(x / 5 + number) + 10 * np.cos(y / 7) + rng.normal(0, 4, size)
    if spot:
        image[SPOT] -= 70
    return image.clip(0, 255).astype(np.uint8)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for number in range(6):
        save(picture(number), root / f"good/{number}.png")
    for number in range(4):
        save(picture(50 + number, spot=True), root / f"scratch/{number}.png")
        save(TRUTH.astype(np.uint8) * 255, root / f"scratch/{number}_mask.png")
    return root


def _ingest(source, tmp_path, name="raw", **arguments):
    summary = ingest_source(source, "plate", tmp_path / name, **arguments)
    return summary, record_rows(tmp_path / name / "records.parquet")


def _problems(source, tmp_path, **arguments):
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        ingest_source(source, "plate", tmp_path / "raw", **arguments)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    return list(caught.value.problems) if isinstance(caught.value, InputErrors) else [str(caught.value)]


def test_a_new_file_renames_none_and_changes_no_other_record(source, tmp_path):
    _, before = _ingest(source, tmp_path)
    save(picture(99), source / "good/0-before-all.png")
    save(picture(98, spot=True), source / "scratch/z-after-all.png")
    save(TRUTH.astype(np.uint8) * 255, source / "scratch/z-after-all_mask.png")
    _, after = _ingest(source, tmp_path, "again")
    assert set(before) < set(after) and len(after) == len(before) + 2
    for record in before:
        one, other = tmp_path / "raw" / record.image, tmp_path / "again" / record.image
        assert one.read_bytes() == other.read_bytes()


def test_renamed_and_reencoded_files_keep_their_id(source, tmp_path):
    _, before = _ingest(source, tmp_path)
    (source / "good/0.png").rename(source / "good/Ünïcode (1).png")
    save(np.asarray(Image.open(source / "scratch/0.png")), source / "scratch/0.bmp")
    (source / "scratch/0.png").unlink()
    _, after = _ingest(source, tmp_path, "again")
    assert sorted(r.sha256 for r in after) == sorted(r.sha256 for r in before)
    assert {r.image[:19] for r in after} == {r.image[:19] for r in before}
    assert {"good/Ünïcode (1).png", "scratch/0.bmp"} <= {r.source for r in after}


def test_an_image_with_several_defect_types_has_one_record_for_each(source, tmp_path):
    values = np.zeros(SIZE, np.uint8)
    values[SPOT] = 1
    values[30:40, 40:60] = 3
    for number in range(4):
        save(values, source / f"scratch/{number}_mask.png")
    options = {"mask_values": {1: "scratch", 3: "glue strip"}}
    summary, records = _ingest(source, tmp_path, options=options)
    assert summary["images"] == 10 and summary["labels"]["scratch"] == "scratch"
    assert set(summary["labels"].values()) == {"scratch", "glue strip"} and set(summary["defects"].values()) == {4}
    assert any("4 image(s) have several defect types" in note for note in summary["notes"])
    rows = [group for group in image_groups(records) if group[0].mask]
    assert len(rows) == 4 and all(len(group) == 2 for group in rows)
    for group in rows:
        assert {record.label for record in group} == {"scratch", "glue strip"}
        assert len({record.image for record in group}) == len({record.sha256 for record in group}) == 1
        masks = {record.label: load_mask(tmp_path / "raw" / record.mask) for record in group}
        assert np.array_equal(masks["scratch"], values == 1) and np.array_equal(masks["glue strip"], values == 3)
    divided = split_records(records, "first_third")
    assert all(len({record.split for record in group}) == 1 for group in image_groups(divided))


def test_different_masks_of_one_image_are_united(source, tmp_path):
    shutil.copy(source / "scratch/0.png", source / "scratch/copy.png")
    other = np.zeros(SIZE, np.uint8)
    other[40:44, 40:44] = 255
    save(other, source / "scratch/copy_mask.png")
    summary, records = _ingest(source, tmp_path)
    assert summary["duplicates"] == [{"image": "scratch/copy.png", "same_as": "scratch/0.png"}]
    assert any("different masks of one defect type; they are united" in note for note in summary["notes"])
    record = next(r for r in records if r.source == "scratch/0.png")
    assert np.array_equal(load_mask(tmp_path / "raw" / record.mask), TRUTH | (other > 0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("inverted", r"0_mask\.png: marks 92% of the image and most of its border, so it looks inverted; set options"),
        ("all defect", r"0_mask\.png: the mask covers the whole image \(scratch\); expected"),
        ("empty", r"0_mask\.png: the mask is empty; expected defect pixels, or --empty-masks leave_out"),
        ("swapped", r"0_mask\.png: the mask looks like a photograph .* if image and mask are swapped, exchange them"),
        ("same file", r"0_mask\.png: the mask (looks like a photograph|is the same file)"),
        ("other size", r"0_mask\.png: 32x24 pixels, its image 64x48; expected the same size"),
        ("no image", r"0_mask\.png: not a readable (image|mask)"),
    ],
)
def test_masks_that_cannot_be_right_are_refused(kind, message, source, tmp_path):
    mask, image = source / "scratch/0_mask.png", source / "scratch/0.png"
    if kind == "inverted":
        save((~TRUTH).astype(np.uint8) * 255, mask)
    elif kind in ("all defect", "empty"):
        save(np.full(SIZE, 255 if kind == "all defect" else 0, np.uint8), mask)
    elif kind == "swapped":
        mask.rename(source / "other.png")
        image.rename(mask)
        (source / "other.png").rename(image)
    elif kind == "same file":
        shutil.copy(image, mask)
    elif kind == "other size":
        save(TRUTH[::2, ::2].astype(np.uint8), mask)
    else:
        mask.write_bytes(b"no image")
    problems = _problems(source, tmp_path)
    assert len(problems) == 1
    import re

    assert re.search(message, problems[0]), problems[0]


def test_a_binary_image_that_is_its_own_mask_is_refused(source, tmp_path):
    shutil.copy(source / "scratch/0_mask.png", source / "scratch/0.png")
    assert "0_mask.png: the mask is the same file as its image" in _problems(source, tmp_path)[0]


def test_inverted_and_large_masks_can_be_declared(source, tmp_path):
    for number in range(4):
        save((~TRUTH).astype(np.uint8) * 255, source / f"scratch/{number}_mask.png")
    assert len(_problems(source, tmp_path)) == 4
    _, records = _ingest(source, tmp_path, options={"mask_rule": "inverted"})
    assert all(np.array_equal(load_mask(tmp_path / "raw" / r.mask), TRUTH) for r in records if r.mask)
    summary, records = _ingest(source, tmp_path, options={"mask_rule": "any"})
    assert all(np.array_equal(load_mask(tmp_path / "raw" / r.mask), ~TRUTH) for r in records if r.mask)
    assert any("4 image(s): the mask of scratch covers more than half of the image" in n for n in summary["notes"])


@pytest.mark.parametrize("marked", ["upright", "stored", "with its own orientation"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_fit_images_with_an_orientation(marked, orientation, source, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    upright = picture(77, spot=True)
    save(turn_upright(upright, inverse), source / "scratch/0.png", exif=exif)
    mask = TRUTH.astype(np.uint8) * 255
    options = {"exif": exif} if marked == "with its own orientation" else {}
    save(mask if marked == "upright" else turn_upright(mask, inverse), source / "scratch/0_mask.png", **options)
    summary, records = _ingest(source, tmp_path)
    record = next(r for r in records if r.source == "scratch/0.png")
    assert (record.width, record.height) == SIZE[::-1]
    assert np.array_equal(load_image(tmp_path / "raw" / record.image)[..., 0], upright)
    with Image.open(tmp_path / "raw" / record.image) as image:
        assert image.getexif().get(0x0112, 1) == 1
    assert any("the EXIF orientation is not 1" in note for note in summary["notes"])
    if orientation != 3 or marked != "stored":  # nothing distinguishes a mask turned by 180 degrees
        assert np.array_equal(load_mask(tmp_path / "raw" / record.mask), TRUTH)


def test_all_problems_are_named_at_once(source, tmp_path):
    (source / "good/0.png").write_bytes(b"")
    save(picture(1, size=(8, 8)), source / "good/1.png")
    save(np.zeros(SIZE, np.uint8), source / "scratch/0_mask.png")
    save(TRUTH[:, :50].astype(np.uint8), source / "scratch/1_mask.png")
    (source / "scratch/2_mask.png").unlink()
    problems = _problems(source, tmp_path)
    assert [next(name for name in ("0.png", "1.png", "0_m", "1_m", "2.png") if name in line) for line in problems]
    text = "\n".join(problems)
    for part in ("good/0.png: not a readable image", "good/1.png: 8x8 pixels", "0_mask.png: the mask is empty"):
        assert part in text
    assert "1_mask.png: 50x48 pixels" in text and "scratch/2.png" in text and len(problems) == 5


def test_control_characters_of_names_are_escaped(source, tmp_path):
    (source / "good/evil\x1b[31m\n.png").write_bytes(b"no")
    problems = _problems(source, tmp_path)
    assert len(problems) == 1 and r"evil\x1b[31m\n.png" in problems[0] and problems[0].isprintable()


@pytest.mark.skipif(os.name != "posix", reason="file names that are not UTF-8")
def test_names_that_are_not_utf8_are_kept_readable(source, tmp_path):
    os.rename(os.fsencode(source / "good/0.png"), os.fsencode(source) + b"/good/caf\xe9.png")
    _, records = _ingest(source, tmp_path)
    assert [r.source for r in records if "caf" in r.source] == [r"good/caf\udce9.png"]


def test_several_frames_and_other_suffixes_are_read(source, tmp_path):
    frames = [Image.fromarray(picture(200 + number)) for number in range(3)]
    frames[0].save(source / "good/stack.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(picture(210)).save(source / "good/a.jfif", format="JPEG")
    Image.fromarray(picture(211)).save(source / "good/b.pgm")
    Image.fromarray(picture(212)).save(source / "good/c.JPG", quality=95)
    summary, records = _ingest(source, tmp_path)
    assert summary["good"] == 10
    assert any("has 3 frames; the first is read (good/stack.tif)" in note for note in summary["notes"])
    by_source = {r.source: r.image[-4:] for r in records}
    assert by_source["good/a.jfif"] == ".png" and by_source["good/c.JPG"] == ".jpg"
    for record in records:
        if record.source.startswith("good/"):
            want = load_image(source / record.source)
            assert np.array_equal(load_image(tmp_path / "raw" / record.image), want)


def test_empty_masks_can_be_left_out(source, tmp_path):
    save(np.zeros(SIZE, np.uint8), source / "scratch/0_mask.png")
    summary, records = _ingest(source, tmp_path, empty_masks="leave_out")
    assert summary["left_out"] == [{"image": "scratch/0.png", "reason": "empty mask"}]
    assert "scratch/0.png" not in {r.source for r in records} and summary["defects"] == {"scratch": 3}
    files = {path.name for path in (tmp_path / "raw").rglob("*") if path.is_file()}
    assert len(files) == 9 + 3 + 3  # 9 images, masks of the same names, 3 links to masks, and the three tables


def test_masks_can_be_found_by_the_name_of_the_original_image(source, tmp_path):
    save(picture(60, spot=True), source / "scratch/night/0.png")
    save(TRUTH.astype(np.uint8), source / "scratch/night/0_mask.png")
    _, records = _ingest(source, tmp_path)
    masks = tmp_path / "raw/masks/scratch"
    assert {path.name for path in masks.iterdir()} == {
        *(r.mask.split("/")[-1] for r in records if r.mask),
        *("1.png", "2.png", "3.png"),  # there are two images with the name 0.png
    }
    record = next(r for r in records if r.source == "scratch/2.png")
    assert (masks / "2.png").samefile(tmp_path / "raw" / record.mask)


def test_a_dry_run_says_the_same_and_writes_nothing(source, tmp_path):
    summary, records = _ingest(source, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    dry = ingest_source(source, "plate", tmp_path / "none", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    found = dry.pop("records")
    assert dry == summary
    assert [(r.source, r.sha256, r.defect) for r in found] == [(r.source, r.sha256, r.defect) for r in records]


def test_the_summary_has_sizes_and_mask_areas(source, tmp_path):
    save(picture(300, size=(60, 80)), source / "good/large.png")
    save((np.arange(48 * 64).reshape(48, 64) < 9).astype(np.uint8), source / "scratch/0_mask.png")
    summary, _ = _ingest(source, tmp_path)
    assert summary["sizes"] == [[64, 48, 10], [80, 60, 1]] and summary["depth"] == ["8 bit"]
    assert summary["mask_areas"] == {"scratch": [9, 240, 240]}


def test_many_images_are_read_by_several_processes_with_the_same_result(source, tmp_path, monkeypatch):
    for number in range(70):
        save(picture(1000 + number, size=(16, 20)), source / f"good/many{number}.png")
    summary, records = _ingest(source, tmp_path)
    monkeypatch.setattr("defect_core.data.parallel.available_cores", lambda: 1)
    other_summary, other = _ingest(source, tmp_path, "other")
    assert summary == other_summary and records == other and summary["good"] == 76
