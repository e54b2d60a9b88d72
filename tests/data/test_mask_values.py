"""What the values of a mask file mean: one case per kind of file that annotation tools write."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from defect_core.data.mask_sources import MaskFile, MaskSizeError, check_mask, looks_inverted
from defect_core.errors import InputError

SIZE = (96, 128)
SPOTS = [(8, 8, 12, 14), (40, 8, 12, 12), (70, 60, 12, 20)]
TRUTH = np.zeros(SIZE, bool)
for top, left, height, width in SPOTS:
    TRUTH[top : top + height, left : left + width] = True


def _numbers(*values, background=0, dtype=np.uint8):
    array = np.full(SIZE, background, dtype)
    for (top, left, height, width), value in zip(SPOTS, values, strict=True):
        array[top : top + height, left : left + width] = value
    return array


def _palette(array, colours):
    image = Image.frombytes("P", SIZE[::-1], array.astype(np.uint8).tobytes())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def _colours(*colours, background=(0, 0, 0)):
    array = np.full((*SIZE, 3), background, np.uint8)
    for (top, left, height, width), colour in zip(SPOTS, colours, strict=True):
        array[top : top + height, left : left + width] = colour
    return Image.fromarray(array)


def _alpha(colour, hidden=(0, 0, 0)):
    array = np.zeros((*SIZE, 4), np.uint8)
    array[..., :3] = hidden
    array[TRUTH] = (*colour, 255)
    return Image.fromarray(array)


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
KINDS = {
    "zero and one": Image.fromarray(_numbers(1, 1, 1)),
    "zero and 255": Image.fromarray(_numbers(255, 255, 255)),
    "one bit": Image.fromarray(TRUTH),
    "class numbers": Image.fromarray(_numbers(1, 2, 3)),
    "class numbers and a void border": Image.fromarray(_numbers(1, 2, 255)),
    "numbers of distant values": Image.fromarray(_numbers(10, 120, 250)),
    "16-bit instance numbers": Image.fromarray(_numbers(1001, 26003, 65535, dtype=np.uint16)),
    "32-bit numbers": Image.fromarray(_numbers(1, 70000, 3, dtype=np.int32)),
    "palette of VOC": _palette(_numbers(1, 2, 3), VOC),
    "palette whose black is not index 0": _palette(_numbers(0, 1, 2, background=3), [*VOC[1:], (0, 0, 0)]),
    "palette without black": _palette(_numbers(1, 2, 3), [(255, 255, 255), *VOC[1:]]),
    "palette of zeros": _palette(_numbers(1, 2, 3), [(0, 0, 0)] * 4),
    "label colours": _colours((128, 0, 0), (0, 64, 0), (0, 0, 9)),
    "label colours on white": _colours((128, 0, 0), (0, 64, 0), (0, 0, 9), background=(255, 255, 255)),
    "one red label": _colours((255, 0, 0), (255, 0, 0), (255, 0, 0)),
    "background one": Image.fromarray(_numbers(2, 3, 4, background=1)),
    "transparent background": _alpha((255, 0, 0)),
    "black on transparent background": _alpha((0, 0, 0)),
    "hidden colours below transparency": _alpha((255, 255, 255), hidden=(255, 255, 255)),
    "floats": Image.fromarray(TRUTH.astype(np.float32)),
    "grey palette": _palette(_numbers(255, 255, 255), [(i, i, i) for i in range(256)]),
}


def _read(image, tmp_path, name="m.png", rule="auto", values=None, **options):
    path = tmp_path / name
    image.save(path, **options)
    return MaskFile((path,), "spot", values, rule).read(*SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_that_is_not_background_counts(kind, tmp_path):
    image = KINDS[kind]
    name = "m.tif" if image.mode in ("F", "I") else "m.png"
    reading = _read(image, tmp_path, name)
    assert list(reading.masks) == ["spot"]
    assert np.array_equal(reading.masks["spot"], TRUTH)
    if kind in ("background one", "label colours on white"):
        assert "most frequent value" in " ".join(reading.notes) and "is background" in " ".join(reading.notes)
    if kind == "palette whose black is not index 0":
        assert reading.notes == ("palette index 3 (black) is background",)


def test_deep_label_colours_are_not_reduced_to_8_bits(tmp_path):
    import cv2

    array = np.zeros((*SIZE, 3), np.uint16)
    array[TRUTH] = (0, 0, 3)  # 3 of 65535 is 0 in 8 bits
    cv2.imwrite(str(tmp_path / "m.png"), array)
    assert np.array_equal(MaskFile((tmp_path / "m.png",), "spot").masks(*SIZE)["spot"], TRUTH)


@pytest.mark.parametrize("count", [17, 40, 200])
def test_many_instance_numbers_are_not_taken_for_grey_levels(count, tmp_path):
    array, want = np.zeros(SIZE, np.uint8), np.zeros(SIZE, bool)
    for number in range(count):
        row, column = divmod(number, 20)
        array[row * 9 : row * 9 + 5, column * 6 : column * 6 + 4] = number + 1
    want = array > 0
    assert np.array_equal(_read(Image.fromarray(array), tmp_path).masks["spot"], want)
    array[90:, 100:] = 255  # a void region far brighter than the numbers
    assert np.array_equal(_read(Image.fromarray(array), tmp_path).masks["spot"], array > 0)


def test_thin_and_single_pixel_instances_are_kept(tmp_path):
    array = np.zeros(SIZE, np.uint8)
    for number in range(40):
        array[2 * number : 2 * number + 1, 3 : 4 + number % 3 * 30] = number + 1
    assert np.array_equal(_read(Image.fromarray(array), tmp_path).masks["spot"], array > 0)


def _soft():
    image = Image.new("L", (SIZE[1] * 8, SIZE[0] * 8))
    ImageDraw.Draw(image).ellipse([100, 150, 700, 500], fill=255)
    return image.resize(SIZE[::-1], Image.Resampling.LANCZOS)


@pytest.mark.parametrize("kind", ["anti-aliased", "blurred", "jpeg", "jpeg saved as png", "16-bit", "probabilities"])
def test_continuous_masks_are_thresholded_at_half(kind, tmp_path):
    image, name = _soft(), "m.png"
    if kind == "blurred":
        image = Image.fromarray(_numbers(255, 255, 255)).filter(ImageFilter.GaussianBlur(2))
    elif kind.startswith("jpeg"):
        Image.fromarray(_numbers(255, 255, 255)).save(tmp_path / "first.jpg", quality=60)
        image = Image.open(tmp_path / "first.jpg")
    elif kind == "16-bit":
        image, name = Image.fromarray(np.asarray(image).astype(np.uint16) * 200), "m.png"
    elif kind == "probabilities":
        image, name = Image.fromarray((np.asarray(image) / 300).astype(np.float32)), "m.tif"
    if kind == "jpeg":
        found = MaskFile((tmp_path / "first.jpg",), "spot").masks(*SIZE)["spot"]
    else:
        found = _read(image, tmp_path, name).masks["spot"]
    levels = np.asarray(image)
    assert np.array_equal(found, levels >= levels.max() / 2)
    if kind.startswith("jpeg"):
        assert np.array_equal(found, TRUTH)


def test_jpeg_of_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"m\.jpg: a JPEG mask with the largest value \d+; JPEG cannot hold numbers"):
        _read(Image.fromarray(_numbers(1, 2, 3)), tmp_path, "m.jpg")


def test_jpeg_of_label_colours_keeps_dark_colours(tmp_path):
    found = _read(_colours((255, 0, 0), (0, 110, 0), (0, 0, 255)), tmp_path, "m.jpg", quality=95, subsampling=0)
    assert (found.masks["spot"] & TRUTH).sum() == TRUTH.sum() and found.masks["spot"].sum() < 1.1 * TRUTH.sum()


@pytest.mark.parametrize("rule", ["auto", "inverted"])
@pytest.mark.parametrize("kind", ["grey", "colour", "noise"])
def test_a_photograph_is_no_mask(kind, rule, tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    photo = 120 + 40 * np.sin(x / 9) + 20 * np.cos(y / 7) + rng.normal(0, 4, SIZE)
    if kind == "noise":
        photo = rng.integers(0, 256, SIZE)
    array = photo.clip(0, 255).astype(np.uint8)
    if kind == "colour":
        array = np.stack([array, array // 2, 255 - array], 2)
    with pytest.raises(InputError, match=r"m\.png: the mask looks like a photograph.*exchange them"):
        _read(Image.fromarray(array), tmp_path, rule=rule)


def test_mask_values_become_defect_types(tmp_path):
    values = {1: "scratch", 2: "dent", 3: "scratch"}
    masks = _read(Image.fromarray(_numbers(1, 2, 3)), tmp_path, values=values).masks
    assert set(masks) == {"scratch", "dent"}
    assert masks["dent"].sum() == 144 and np.array_equal(masks["scratch"] | masks["dent"], TRUTH)
    masks = _read(Image.fromarray(_numbers(1, 3, 3)), tmp_path, values={1: "scratch", 2: "hole", 3: "dent"}).masks
    assert set(masks) == {"scratch", "dent"}  # no pixel of a hole
    masks = _read(Image.fromarray(_numbers(1, 2, 255)), tmp_path, values={1: "a", 2: "ignore", 255: "ignore"}).masks
    assert list(masks) == ["a"] and masks["a"].sum() == 12 * 14
    masks = _read(_palette(_numbers(1, 2, 3), VOC), tmp_path, values={1: "a", 2: "b", 3: "c"}).masks
    assert list(masks) == ["a", "b", "c"]


def test_mask_values_may_be_colours(tmp_path):
    image = _colours((255, 0, 0), (0, 255, 0), (255, 0, 0))
    masks = _read(image, tmp_path, values={"#FF0000": "scratch", "0,255,0": "dent"}).masks
    assert masks["dent"].sum() == 144 and np.array_equal(masks["scratch"] | masks["dent"], TRUTH)
    with pytest.raises(InputError, match=r"value #00ff00 \(144 pixels\) is not in options.mask_values.*#ff0000"):
        _read(image, tmp_path, values={"#ff0000": "scratch"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({1: "scratch"}, r"m\.png: value 2 \(144 pixels\) is not in options.mask_values; expected one of 1"),
        ({"red": "scratch"}, r"options\.mask_values: key 'red'; expected a number or a colour"),
    ],
)
def test_values_without_a_label_are_refused(values, message, tmp_path):
    with pytest.raises(InputError, match=message):
        _read(Image.fromarray(_numbers(1, 2, 1)), tmp_path, values=values)


def test_mask_values_need_a_mask_of_few_values(tmp_path):
    with pytest.raises(InputError, match="continuous range of values"):
        _read(_soft(), tmp_path, values={255: "scratch"})


def test_rules_can_be_declared(tmp_path):
    image = Image.fromarray(_numbers(1, 2, 3))
    assert np.array_equal(_read(image, tmp_path, rule="any").masks["spot"], TRUTH)
    half = _read(image, tmp_path, rule="half").masks["spot"]
    assert half.sum() == 144 + 240 and not half[10, 10]
    inverted = _read(Image.fromarray(_numbers(0, 0, 0, background=255)), tmp_path, rule="inverted")
    assert np.array_equal(inverted.masks["spot"], TRUTH) and "inverted" in inverted.notes[-1]
    with pytest.raises(InputError, match=r"options\.mask_rule: 'most'; expected one of auto, any, half, inverted"):
        MaskFile((tmp_path / "m.png",), "spot", rule="most")


def test_all_pages_and_all_files_of_a_mask_are_united(tmp_path):
    pages = [Image.fromarray(_numbers(*(255 * (i == k) for i in range(3)))) for k in range(3)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(MaskFile((tmp_path / "m.tif",), "spot").masks(*SIZE)["spot"], TRUTH)
    for number, page in enumerate(pages):
        page.save(tmp_path / f"{number}.png")
    files = tuple(tmp_path / f"{number}.png" for number in range(3))
    assert np.array_equal(MaskFile(files, "spot").masks(*SIZE)["spot"], TRUTH)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_with_an_orientation_are_turned_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _numbers(1, 2, 3)
    Image.fromarray(stored).save(tmp_path / f"m.{suffix}", exif=exif)
    upright = np.asarray(Image.open(tmp_path / f"m.{suffix}").convert("L"))
    turns = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }
    want = turns[orientation]
    found = MaskFile((tmp_path / f"m.{suffix}",), "spot").masks(*want.shape)["spot"]
    assert np.array_equal(found, want > 0) and upright.size == found.size


def test_empty_and_full_masks_and_other_sizes(tmp_path):
    assert _read(Image.new("L", SIZE[::-1]), tmp_path).masks == {}
    assert _read(_palette(_numbers(0, 0, 0), VOC), tmp_path).masks == {}
    full = _read(Image.new("L", SIZE[::-1], 7), tmp_path).masks["spot"]
    assert full.all() and check_mask(full) == "the mask covers the whole image"
    assert check_mask(TRUTH) is None and check_mask(TRUTH & False) == "the mask is empty"
    Image.new("L", (30, 20)).save(tmp_path / "small.png")
    with pytest.raises(MaskSizeError, match=r"small\.png: 30x20 pixels, its image 128x96; expected the same size"):
        MaskFile((tmp_path / "small.png",), "spot").masks(*SIZE)


def test_inverted_masks_are_recognised_by_their_border():
    assert looks_inverted(~TRUTH) and not looks_inverted(TRUTH)
    disc = np.hypot(*np.mgrid[-48:48, -64:64]) < 54  # a large defect in the middle
    assert disc.mean() > 0.5 and not looks_inverted(disc)
