"""Files that stages wrote and something damaged: one line that names the file and the cure."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from defect_core.data.files import atomic_path, find_non_finite, write_json
from defect_core.data.guarded import inside, read_json, read_json_list, read_tensors
from defect_core.data.manifest import ManifestRow, accepted_rows, write_manifest
from defect_core.errors import InputError, NonFiniteError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b'{"a": NaN}', "has the number NaN"),
        (b'{"a": -Infinity}', "has the number -Infinity"),
        (b'{"b": 1}', "the key 'a' is missing"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path, ("a",))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError):
        read_json_list(path) if not content.startswith(b"[1") else read_json_list(tmp_path / "missing.json")


def test_every_truncation_and_bit_flip_of_a_header_is_one_line(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2)}, whole, {"k": "v"})
    content = whole.read_bytes()
    path = tmp_path / "x.safetensors"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged"):
            read_tensors(path)
    for position in range(0, 60):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        try:
            read_tensors(path, ("a", "b"))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a flip in a name can leave a whole file


def test_tensors_must_have_the_expected_names_and_finite_values(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(NonFiniteError, match="'a' has a value that is not finite"):
        read_tensors(path)
    with pytest.raises(InputError, match="'b' is missing"):
        read_tensors(path, ("a", "b"))
    with pytest.raises(InputError, match="'a' is unknown"):
        read_tensors(path, ())


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\\b", "x\0y", "out/link"])
def test_a_path_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / "set/out").mkdir(parents=True)
    (tmp_path / "set/out/link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="not inside this folder"):
        inside(tmp_path / "set", name)
    assert inside(tmp_path / "set", "images/a.png") == tmp_path / "set/images/a.png"


def test_json_with_nan_is_not_written(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(NonFiniteError, match=r"x.json: mean.pixel_ap.1 is not finite"):
        write_json(path, {"mean": {"pixel_ap": [1.0, float("nan")]}})
    assert json.loads(path.read_text()) == {"a": 1}
    assert find_non_finite({"a": [1, "x", None, True]}) is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as temporary:
        _write_half(temporary)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def _write_half(path):
    path.write_text("half")
    raise OSError("disk full")


def _row(**changes):
    values = dict.fromkeys(ManifestRow.__dataclass_fields__, None) | {
        "sample_id": "s0", "product": "p", "defect": "cut", "image": "images/s0.png", "mask": "masks/s0.png",
        "generator": "g", "seed": 0, "mask_area": 4, "accepted": True,
    }  # fmt: skip
    return ManifestRow(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defect": "../../.."}, "is not a usable name"),
        ({"sample_id": "a/b"}, "is not a usable name"),
        ({"image": "../raw/p/test/cut/000.png"}, "not inside this folder"),
        ({"mask": None}, "not inside this folder"),
        ({"image": "images/missing.png"}, "No such file"),
        ({"mask": "masks/small.png"}, "different sizes"),
        ({"image": "images/no_image.png"}, "cannot identify"),
    ],
)
def test_a_row_with_a_bad_name_or_file_is_refused(tmp_path, changes, message):
    for name, size in (("images/s0.png", 8), ("masks/s0.png", 8), ("masks/small.png", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / name)
    (tmp_path / "images/no_image.png").write_text("text")
    write_manifest([_row()], tmp_path / "manifest.parquet")
    assert len(accepted_rows(tmp_path)) == 1
    write_manifest([_row(**changes)], tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match=message):
        accepted_rows(tmp_path)
