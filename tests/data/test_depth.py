"""Images that are not 8 bit: how their range is found, applied and inverted, and what ingestion keeps."""

import cv2
import numpy as np
import pytest
from PIL import Image

from defect_core.data.depth import Depth, ValueRange, detect_range
from defect_core.data.images import ImageInfo, read_image, read_stored, turn_upright
from defect_core.data.layouts import ingest_source
from defect_core.data.records import load_image, load_mask, record_rows
from defect_core.errors import InputError, InputErrors

SIZE = (40, 56)
SPOT = (slice(10, 20), slice(12, 30))


def plate(number, top=1.0, spot=False):
    """Return a textured plate, float64 [H, W] in 0 to `top`; a spot is dark."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = 0.6 + 0.2 * np.sin(x / 5 + number) + 0.1 * np.cos(y / 7) + rng.normal(0, 0.02, SIZE)
    if spot:
        image[SPOT] -= 0.3
    return image.clip(0, 0.98) * top


def write(image, path):
    """Write an image by OpenCV, which knows 16-bit colours and floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.dtype == np.float64:
        Image.fromarray(image.astype(np.float32)).save(path)
    else:
        cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def deep_source(root, make, suffix="png", normals=6):
    """Write a source whose images are made by `make(number, spot)`."""
    for number in range(normals):
        write(make(number, False), root / f"good/{number}.{suffix}")
    mask = np.zeros(SIZE, np.uint8)
    mask[SPOT] = 255
    for number in range(4):
        write(make(50 + number, True), root / f"void/{number}.{suffix}")
        write(mask, root / f"void/{number}_mask.png")
    return root


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("8 bit in 16", "8 bit in 16"),
        ("10 bit", "10 bit in 16"),
        ("12 bit", "12 bit in 16"),
        ("14 bit", "14 bit in 16"),
        ("16 bit", "16 bit in 16"),
        ("12 bit tiff", "12 bit in 16"),
        ("12 bit pgm", "12 bit in 16"),
        ("12 bit colour png", "12 bit in 16"),
        ("12 bit colour tiff", "12 bit in 16"),
        ("12 bit with hot pixels", "12 bit in 16"),
        ("float 0 to 1", "float 0..1"),
        ("float 0 to 255", "float 0..255"),
        ("float degrees", None),
        ("float64 tiff", "float 0..1"),
    ],
)
def test_deep_images_use_the_whole_grey_range(kind, depth, tmp_path):
    bits = int(kind.split()[0]) if kind[0].isdigit() else 0

    def make(number, spot):
        if kind.startswith("float"):
            low, top = (-20, 60) if "degrees" in kind else (0, 255 if "255" in kind else 1)
            return low + plate(number, spot=spot) * (top - low)
        image = np.rint(plate(number, 2**bits - 1, spot)).astype(np.uint16)
        if "hot" in kind:
            image[3, 3] = 65535
        return np.stack([image, image, image // 2], 2) if "colour" in kind else image

    suffix = "tif" if kind.startswith("float") or "tiff" in kind else "pgm" if "pgm" in kind else "png"
    source = deep_source(tmp_path / "source", make, suffix)
    if kind == "float64 tiff":
        for path in source.rglob("[0-9].tif"):
            cv2.imwrite(str(path), cv2.imread(str(path), -1).astype(np.float64))
    summary = ingest_source(source, "casting", tmp_path / "raw")
    records = record_rows(tmp_path / "raw/records.parquet")
    assert [note for note in summary["notes"] if note.startswith("depth: ")]
    assert {r.depth for r in records} == set(summary["depth"]) and len(summary["depth"]) == 1
    if depth:
        assert summary["depth"] == [depth]
    for record in records:
        image = load_image(tmp_path / "raw" / record.image)
        assert record.image.endswith(".png") and 60 < image[..., 0].mean() < 210 and image.max() > 180
        stored, _ = read_stored(tmp_path / "raw/originals" / f"{record.image[7:19]}.{suffix}")
        assert np.array_equal(stored, read_stored(source / record.source)[0])
        back = Depth.parse(record.depth).to_original(image if stored.ndim == 3 else image[..., 0])
        found = Depth.parse(record.depth)
        usual, span = (stored <= found.high) & (stored >= found.low), found.high - found.low
        assert usual.mean() > 0.9
        assert np.abs(back.astype(float) - stored)[usual].max() <= span / 255 / 2 + 1
    spots = [r for r in records if r.mask]
    assert all(load_mask(tmp_path / "raw" / r.mask).sum() == 180 for r in spots)


@pytest.mark.parametrize("declared", ["14", "0..16383", 14])
def test_a_declared_depth_is_used(declared, tmp_path):
    source = deep_source(tmp_path / "s", lambda n, spot: np.rint(plate(n, 4095, spot)).astype(np.uint16))
    summary = ingest_source(source, "p", tmp_path / "raw", options={"depth": str(declared)})
    assert summary["depth"] == ["14 bit in 16"]
    record = record_rows(tmp_path / "raw/records.parquet")[0]
    stored, _ = read_stored(source / record.source)
    want = np.floor(stored * (255 / 16383) + 0.5)
    assert np.array_equal(load_image(tmp_path / "raw" / record.image)[..., 0], want)


def test_the_range_is_that_of_the_normal_images(tmp_path):
    def make(number, spot):
        image = np.rint(plate(number, 1023, spot)).astype(np.uint16)
        if spot:
            image[30:34, 30:34] = 3000  # brighter than any normal image
        return image

    summary = ingest_source(deep_source(tmp_path / "s", make), "p", tmp_path / "raw")
    assert summary["depth"] == ["10 bit in 16"]
    assert any("4 image(s): has values outside 10 bit in 16, which are clipped" in n for n in summary["notes"])


def test_8_bit_and_deep_images_of_one_product_are_said(tmp_path):
    source = deep_source(tmp_path / "s", lambda n, spot: np.rint(plate(n, 4095, spot)).astype(np.uint16))
    write(np.rint(plate(90, 255)).astype(np.uint8), source / "good/eight.png")
    summary = ingest_source(source, "p", tmp_path / "raw")
    assert summary["depth"] == ["12 bit in 16", "8 bit"]
    assert "1 images have 8 bits and 10 have more" in summary["notes"]


def test_pixels_that_are_no_number_are_refused(tmp_path):
    def make(number, spot):
        image = plate(number, spot=spot)
        if spot:
            image[2, 2] = np.nan
        return image

    with pytest.raises(InputErrors) as caught:
        ingest_source(deep_source(tmp_path / "s", make, "tif"), "p", tmp_path / "raw")
    assert len(caught.value.problems) == 4
    assert all("has pixels that are not a finite number" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("text", ["12 bit in 16", "16 bit in 16", "5..900 in 16 bit", "float 0..1", "int -40..80"])
def test_a_depth_is_read_back_from_its_words(text):
    assert str(Depth.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0", "17", "twelve", "9..3", "12..", None])
def test_unknown_depths_are_refused(text):
    with pytest.raises(InputError, match=r"options\.depth: .*; expected bits such as 12, or a range"):
        Depth.parse(text)


def test_sixteen_bits_scale_as_before():
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(Depth.of_bits(16).to_8_bit(values), (values.astype(int) + 128) // 257)
    assert np.array_equal(Depth(0, 255).to_original(np.arange(256, dtype=np.uint8)), np.arange(256))


@pytest.mark.parametrize(
    ("values", "dtype", "want"),
    [
        ([0, 100, 200], "uint16", Depth(0, 255)),
        ([0, 900, 1023], "uint16", Depth(0, 1023)),
        ([0, 900, 1024], "uint16", Depth(0, 4095)),
        ([0, 60, 65535], "uint16", Depth(0, 63)),  # a hot pixel in a nearly black image
        ([0, 2000, 65535], "uint16", Depth(0, 4095)),
        ([0.0, 0.9, 1.0], "float32", Depth(0, 1, "float32")),
    ],
)
def test_the_smallest_bit_depth_that_holds_the_values_is_chosen(values, dtype, want):
    low, bright, high = values
    assert detect_range([ValueRange(low, bright, high, low)], dtype) == want


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_images_are_brought_upright(orientation, suffix, tmp_path):
    upright = np.rint(plate(1, 255)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    upright[:40, :80] = 255  # one corner differs from the others
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = turn_upright(upright, inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {})
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (*upright.shape, 3)
    assert np.abs(image[..., 0].astype(int) - upright).max() <= (3 if suffix == "jpg" else 0)
    _, info = read_stored(tmp_path / f"a.{suffix}")
    assert info == ImageInfo(upright.shape[1], upright.shape[0], info.mode, 8, orientation)


def test_the_pixel_limit_names_its_option(tmp_path, recwarn):
    save = tmp_path / "good.png"
    Image.new("L", (300, 200)).save(save)
    with pytest.raises(
        InputError, match=r"good\.png: 60000 pixels; expected at most 59999, or a larger options\.max_p"
    ):
        read_image(save, max_pixels=59_999)
    assert read_image(save, max_pixels=60_000).shape == (200, 300, 3)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "wide.png")  # 200 million pixels, more than Pillow allows
    with pytest.raises(InputError, match="200000000 pixels; expected at most"):
        read_image(tmp_path / "wide.png", max_pixels=199_999_999)
    assert not recwarn.list
