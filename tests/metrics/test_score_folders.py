"""Scores of folders with images and masks of many kinds."""

import json

import numpy as np
import pytest
from PIL import Image

from defect_core.errors import InputError
from defect_core.metrics.folders import score_folders

SIZE = 32


def _picture(seed, side=40):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def _write(folder, names, mode="RGB", side=40, first=0):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = _picture(first + number, side)
        if mode == "I;16":
            Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(path)
        else:
            Image.fromarray(picture).convert(mode).save(path)
    return folder


def _mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((40, 40), np.uint8)
    mask[8:20, 8:20] = values
    Image.fromarray(mask).save(path)


def _score(real, generated):
    result = score_folders(real, generated, SIZE, 0)
    text = json.dumps(result, allow_nan=False)  # no NaN anywhere
    assert str(real) not in text and str(generated) not in text
    names = {name.split("/")[-1] for name in result["missing"]} | set(result["scores"]["pooled"])
    assert {"frechet_lite0", "diversity", "memorisation_pixels", "ic_lpips_masked_lite0", "precision_lite0"} <= names
    assert all(len(reason) > 5 for reason in result["missing"].values())
    return result


def test_one_image_per_side_has_defined_scores_and_reasons_for_the_others(tmp_path):
    result = _score(_write(tmp_path / "real", ["a.png"]), _write(tmp_path / "generated", ["b.png"], first=5))
    assert "fewer than two" in result["missing"]["frechet_lite0"]
    # LPIPS, with installed weights, is defined for one image too
    assert {k: v for k, v in result["scores"]["pooled"].items() if k != "lpips"} == {"score_lite0": 1.0}
    assert result["nearest"]["all"]["pixels"] == [{"generated": "b.png", "real": "a.png", "ratio": None}]


def test_sizes_and_pixel_types_may_be_mixed(tmp_path):
    real = _write(tmp_path / "real", ["gray.png"], "L")
    _write(real, ["deep/large.png"], "RGB", 120, 1)
    _write(real, ["deep16.png"], "I;16", 40, 2)
    generated = _write(tmp_path / "generated", ["alpha.png"], "RGBA", 64, 3)
    _write(generated, ["palette.png"], "P", 40, 4)
    _write(generated, ["photo.jpg"], "RGB", 56, 5)
    result = _score(real, generated)
    assert "frechet_lite0" in result["scores"]["pooled"]
    assert result["protocol"]["defects"]["all"] == {"real": 3, "compared_with": 3, "generated": 3}


@pytest.mark.parametrize("value", [1, 7, 255])
def test_masks_of_any_value_are_read_beside_images_and_in_mask_folders(tmp_path, value):
    real, generated = (
        _write(tmp_path / "real", ["x/a.png", "x/b.png"]),
        _write(tmp_path / "generated", ["c.png", "d.png"]),
    )
    for name in ("a", "b"):
        _mask(real / f"masks/x/{name}.png", value)
    for name in ("c", "d"):
        _mask(generated / f"{name}_mask.png", value)
    result = _score(real, generated)
    assert result["scores"]["pooled"]["mask_diversity"] == 0
    assert "ic_lpips_masked_lite0" in result["scores"]["pooled"] or result["missing"]["all/ic_lpips_masked_lite0"]
    assert result["protocol"]["defects"]["all"]["real"] == 2  # masks do not count as images


def test_masks_without_a_defect_pixel_are_a_reason_not_nan(tmp_path):
    real, generated = _write(tmp_path / "real", ["a.png", "b.png"]), _write(tmp_path / "generated", ["c.png", "d.png"])
    for name in ("a", "b"):
        _mask(real / f"{name}_mask.png", 255)
    for name in ("c", "d"):
        _mask(generated / f"{name}_mask.png", 0)
    assert _score(real, generated)["missing"]["mask_diversity"] == "no defect pixel in any mask of generated"


def test_masks_on_one_side_are_ignored(tmp_path):
    real, generated = _write(tmp_path / "real", ["a.png", "b.png"]), _write(tmp_path / "generated", ["c.png"])
    for name in ("a", "b"):
        _mask(real / f"{name}_mask.png", 255)
    assert _score(real, generated)["missing"]["ic_lpips_masked_lite0"] == "no masks in generated"


def test_constant_images_give_reasons_not_nan(tmp_path):
    for side in ("real", "generated"):
        for name in "abc":
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / side / f"{name}.png")
    result = _score(tmp_path / "real", tmp_path / "generated")
    assert result["scores"]["pooled"]["diversity"] == 0 and result["scores"]["pooled"]["precision_lite0"] == 1
    assert "two different real images" in result["missing"]["memorisation_lite0"]


def test_an_unusable_folder_raises_an_error_of_one_line(tmp_path):
    real = _write(tmp_path / "real", ["a.png", "b.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.png").write_text("no image")
    _mask(real / "a_mask.png", 255)
    for generated, line in (
        ("nowhere", "not a folder"),
        ("empty", "no image"),
        ("text", "a.png: not a readable image"),
    ):
        with pytest.raises(InputError, match=line) as caught:
            score_folders(tmp_path / generated, tmp_path / generated, SIZE, 0)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"b\.png: no mask, but 1 other"):
        score_folders(real, real, SIZE, 0)
