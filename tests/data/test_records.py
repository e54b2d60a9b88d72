"""Reading and writing of images, masks, names and tables."""

import numpy as np
import pytest
from PIL import Image

from defect_core.data.manifest import MANIFEST_COLUMNS, ManifestRow, read_manifest, write_manifest
from defect_core.data.records import (
    Record,
    check_name,
    load_image,
    load_mask,
    natural_key,
    pixel_digest,
    read_records,
    save_png,
    write_records,
)
from defect_core.errors import InputError

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["screw", "MT_Free", "a", "0x", "v1.2-b", "x" * 64])
def test_usable_names(name):
    assert check_name(name, "product") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a/b",
        "a\\b",
        "..",
        "a..b",
        "a|b",
        "a,b",
        "[a]",
        "a\n",
        "\x00",
        ".a",
        "-a",
        "a:b",
        "a@b",
        "{a}",
        "$a",
    ]
    + ["x" * 65, "a.", "é", None],
)
def test_unusable_names_are_refused(name):
    with pytest.raises(InputError, match="product: .* letters, digits") as caught:
        check_name(name, "product")
    assert "\n" not in str(caught.value)


def test_natural_order():
    names = ["10", "9", "a2b10", "a2b9", "a10", "", "b", "007", "7"]
    assert sorted(names, key=natural_key) == ["", "007", "7", "9", "10", "a2b9", "a2b10", "a10", "b"]


def test_image_modes(tmp_path):
    def load(image, name="x.png"):
        image.save(tmp_path / name)
        return load_image(tmp_path / name)

    assert np.array_equal(load(Image.fromarray(COLOURS)), COLOURS)
    gray = COLOURS[..., 0]
    assert np.array_equal(load(Image.fromarray(gray)), np.repeat(gray[..., None], 3, axis=2))
    alpha = np.dstack([COLOURS, np.zeros((20, 30), np.uint8)])  # fully transparent: the colours still count
    assert np.array_equal(load(Image.fromarray(alpha)), COLOURS)
    deep = np.array([[0, 128, 129, 257, 65535]] * 4, dtype=np.uint16)
    assert load(Image.fromarray(deep))[0, :, 1].tolist() == [0, 0, 1, 1, 255]
    assert load(Image.fromarray(deep), "x.tif")[0, :, 2].tolist() == [0, 0, 1, 1, 255]
    palette = Image.fromarray((gray // 64 * 64).astype(np.uint8)).convert("P")
    assert np.array_equal(load(palette)[..., 0], gray // 64 * 64)
    assert load(Image.fromarray(gray > 99))[..., 0].max() == 255
    with pytest.raises(InputError, match=r"x\.tif.*8 or 16 bits"):
        load(Image.fromarray(np.ones((4, 4), np.float32)), "x.tif")


@pytest.mark.parametrize("content", [None, b"", b"not an image", "cut"])
def test_unreadable_images_name_the_file(tmp_path, content):
    path = tmp_path / "bad.png"
    if content == "cut":
        save_png(COLOURS, path)
        path.write_bytes(path.read_bytes()[:200])
    elif content is not None:
        path.write_bytes(content)
    for load in (load_image, load_mask):
        with pytest.raises(InputError, match=r"bad\.png") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_mask_rule(tmp_path):
    truth = np.zeros((6, 8), dtype=bool)
    truth[1:3, 2:5] = True
    anti_aliased = truth * np.uint8(255)
    anti_aliased[0, 0], anti_aliased[5, 7] = 127, 128
    for name, array, expected in [
        ("zero_one", truth.astype(np.uint8), truth),
        ("black_white", truth * np.uint8(255), truth),
        ("red", np.dstack([truth * np.uint8(200), truth * np.uint8(0), truth * np.uint8(0)]), truth),
        ("bits", truth, truth),
        ("empty", truth * np.uint8(0), truth & False),
        ("deep", truth * np.uint16(40000), truth),
    ]:
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        assert np.array_equal(load_mask(tmp_path / f"{name}.png"), expected), name
    Image.fromarray(anti_aliased).save(tmp_path / "soft.png")
    soft = load_mask(tmp_path / "soft.png")
    assert not soft[0, 0] and soft[5, 7] and soft.sum() == truth.sum() + 1
    doubled = load_mask(tmp_path / "bits.png", size=(12, 16))
    assert np.array_equal(doubled, truth.repeat(2, 0).repeat(2, 1))


def test_save_png_is_exact_and_stable(tmp_path):
    save_png(COLOURS, tmp_path / "deep" / "a.png")
    save_png(COLOURS, tmp_path / "b.png")
    assert np.array_equal(load_image(tmp_path / "b.png"), COLOURS)
    assert (tmp_path / "deep" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        save_png(COLOURS.astype(float), tmp_path / "c.png")


def test_digest_is_of_content_not_of_file(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.fromarray(COLOURS).save(tmp_path / "b.bmp")
    one, other = (pixel_digest(load_image(tmp_path / name)) for name in ("a.png", "b.bmp"))
    assert one == other
    changed = COLOURS.copy()
    changed[3, 4, 1] ^= 1
    assert pixel_digest(changed) != one
    assert pixel_digest(COLOURS.reshape(30, 20, 3)) != one


def test_records_round_trip(tmp_path):
    records = [
        Record("p", "good", "good/9.png", None, "train", "a" * 64, 30, 20),
        Record("p", "cut", "cut/1.jpg", "masks/cut/1.png", "", "b" * 64, 31, 21),
    ]
    write_records(records, tmp_path / "a.parquet")
    write_records(records, tmp_path / "b.parquet")
    assert read_records(tmp_path / "a.parquet") == records
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write_records([], tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet") == []


def test_tables_of_other_shape_are_refused(tmp_path):
    rows = [ManifestRow("s", "p", "d", "i", "m", "g", 2**63 - 1, "si", None, "", 0.5, 9, None, True, None, "x", "y")]
    path = tmp_path / "manifest.parquet"
    write_manifest(rows, path)
    assert read_manifest(path) == rows and len(MANIFEST_COLUMNS) == 23
    with pytest.raises(InputError, match=r"manifest\.parquet: column 'split' is missing"):
        read_records(path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"x\.parquet: not a readable parquet"):
        read_manifest(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: not found"):
        read_manifest(tmp_path / "none.parquet")


def test_column_types_are_checked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_records([Record("p", "good", "good/9.png", None, "train", "a" * 64, 30, 20)], tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    wrong = table.set_column(6, "width", pa.array(["30"]))
    pq.write_table(wrong, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column 'width' is string; expected int64"):
        read_records(tmp_path / "a.parquet")
    pq.write_table(table.append_column("more", pa.array([1])), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="unknown column 'more'"):
        read_records(tmp_path / "a.parquet")
