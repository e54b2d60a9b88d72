"""Names, and reading and writing of images and masks."""

import numpy as np
import pytest
from PIL import Image

from defect_core.data.near_duplicates import thumbnail
from defect_core.data.records import check_name, load_image, load_mask, natural_key, pixel_digest, save_png
from defect_core.errors import InputError

UNUSABLE_NAMES = [
    "", " ", "a b", "a/b", "a\\b", "..", "a..b", "a|b", "a,b", "[a]", "a\n", "\x00", ".a", "-a", "a:b", "a@b", "{a}",
    "$a", "a.", "é", "x" * 65, None,
]  # fmt: skip
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["screw", "MT_Free", "a", "0x", "v1.2-b", "x" * 64])
def test_usable_names_are_returned(name):
    assert check_name(name, "product") == name


@pytest.mark.parametrize("name", UNUSABLE_NAMES)
def test_unusable_names_are_refused(name):
    with pytest.raises(InputError, match=r"product: .* letters, digits") as caught:
        check_name(name, "product")
    assert "\n" not in str(caught.value)


def test_natural_order_compares_digits_as_numbers():
    names = ["10", "9", "a2b10", "a2b9", "a10", "", "b", "007", "7"]
    assert sorted(names, key=natural_key) == ["", "007", "7", "9", "10", "a2b9", "a2b10", "a10", "b"]


def test_all_pixel_types_become_rgb(tmp_path):
    def load(image, name="x.png"):
        image.save(tmp_path / name)
        return load_image(tmp_path / name)

    assert np.array_equal(load(Image.fromarray(COLOURS)), COLOURS)
    gray = COLOURS[..., 0]
    assert np.array_equal(load(Image.fromarray(gray)), np.repeat(gray[..., None], 3, axis=2))
    alpha = np.dstack([COLOURS, np.zeros((20, 30), np.uint8)])  # fully transparent: the colours stay
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
def test_errors_of_unreadable_images_name_the_file(tmp_path, content):
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


def test_masks_are_true_from_half_of_their_maximum(tmp_path):
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


def test_saved_png_is_lossless_and_reproducible(tmp_path):
    save_png(COLOURS, tmp_path / "deep" / "a.png")
    save_png(COLOURS, tmp_path / "b.png")
    assert np.array_equal(load_image(tmp_path / "b.png"), COLOURS)
    assert (tmp_path / "deep" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        save_png(COLOURS.astype(float), tmp_path / "c.png")


def test_pixel_digest_depends_on_the_pixels_only(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.fromarray(COLOURS).save(tmp_path / "b.bmp")
    one, other = (pixel_digest(load_image(tmp_path / name)) for name in ("a.png", "b.bmp"))
    assert one == other
    changed = COLOURS.copy()
    changed[3, 4, 1] ^= 1
    assert pixel_digest(changed) != one
    assert pixel_digest(COLOURS.reshape(30, 20, 3)) != one


def test_a_grey_image_has_the_digest_and_the_thumbnail_of_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (1100, 70), np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    assert pixel_digest(grey) == pixel_digest(colour)
    assert pixel_digest(grey[:, ::2]) == pixel_digest(colour[:, ::2])
    assert np.array_equal(thumbnail(grey), thumbnail(colour))
