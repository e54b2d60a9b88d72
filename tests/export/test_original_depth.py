"""Exports give back the values of images that are not 8 bit."""

import cv2
import numpy as np
import pytest
from PIL import Image

from defect_core.data.depth import Depth
from defect_core.data.images import read_stored
from defect_core.data.layouts import ingest_source
from defect_core.data.records import load_image, record_rows, save_png
from defect_core.export.formats import ExportItem, write_coco, write_mvtec
from defect_core.export.original_depth import OriginalValues

SPOT = (slice(5, 12), slice(8, 20))


def _product(root, kind):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 40), np.uint8)
    mask[SPOT] = 255
    for folder, count in (("good", 4), ("void", 3)):
        for number in range(count):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image = rng.uniform(0.3, 0.9, (32, 40, 3) if kind == "colour" else (32, 40))
            if kind == "float":
                Image.fromarray(image.astype(np.float32)).save(root / folder / f"{number}.tif")
            else:
                cv2.imwrite(str(root / folder / f"{number}.png"), np.rint(image * 4095).astype(np.uint16))
            if folder == "void":
                cv2.imwrite(str(root / folder / f"{number}_mask.png"), mask)
    return root


@pytest.mark.parametrize("kind", ["grey", "colour", "float"])
def test_unchanged_pixels_are_those_of_the_original(kind, tmp_path):
    source = _product(tmp_path / "source", kind)
    ingest_source(source, "p", tmp_path / "raw")
    records = record_rows(tmp_path / "raw/records.parquet")
    original = OriginalValues(tmp_path / "raw", records)
    normal = next(record for record in records if record.mask is None)
    stored, _ = read_stored(source / normal.source)
    assert original and np.array_equal(original.real(normal.image), stored)
    generated = load_image(tmp_path / "raw" / normal.image).copy()
    generated[SPOT] = 7
    save_png(generated, tmp_path / "generated.png")
    values = original.generated(tmp_path / "generated.png", normal.image)
    assert values.dtype == stored.dtype and values.shape == stored.shape
    outside = np.ones(stored.shape[:2], bool)
    outside[SPOT] = False
    assert np.array_equal(values[outside], stored[outside])
    assert (values[SPOT] == Depth.parse(normal.depth).to_original(np.full(1, 7, np.uint8))).all()
    suffix = original.suffix(normal.image)
    assert suffix == (".tif" if kind == "float" else ".png")
    item = ExportItem("a", "good", tmp_path / "raw" / normal.image, None, lambda: values, suffix)
    for write in (write_mvtec, write_coco):
        write([item], tmp_path / write.__name__)
    for folder in ("write_mvtec/train/good", "write_coco/images"):
        assert np.array_equal(read_stored(tmp_path / folder / f"a{suffix}")[0], values)


def test_products_of_8_bits_have_no_other_values(tmp_path):
    original = OriginalValues(tmp_path, [])
    assert not original and original.real("images/a.png") is None and original.suffix("images/a.png") == ".png"
    assert original.generated(tmp_path / "a.png", None) is None
