"""Layouts of VisA, MVTec LOCO AD and MVTec 3D-AD on small copies of their folder trees."""

import numpy as np
import pytest
from PIL import Image

from defect_core.data.layouts import ingest_source, read_layout
from defect_core.data.records import load_mask, record_rows
from defect_core.data.splits import split_records
from defect_core.errors import InputError


def _picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _mask(path, *rows_and_values):
    """Write a mask with one row of pixels per (row, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((24, 32), np.uint8)
    for row, value in rows_and_values:
        mask[row, 4:9] = value
    Image.fromarray(mask).save(path)


@pytest.fixture
def visa(tmp_path):
    root = tmp_path / "VisA"
    rows = ["object,split,label,image,mask"]
    for i in range(6):
        name = f"candle/Data/Images/Normal/{i:04}.JPG"
        _picture(root / name, i)
        rows.append(f"candle,{'test' if i in (1, 4) else 'train'},normal,{name},")
    for i in range(4):
        name, mask = f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png"
        _picture(root / name, 20 + i)
        _mask(root / mask, (3, 1), (9, 5))
        rows.append(f"candle,test,anomaly,{name},{mask}")
    rows.append("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root / "candle"


@pytest.fixture
def loco(tmp_path):
    root = tmp_path / "splicing"
    for number, split in enumerate(("train", "validation", "test")):
        for i in range(3):
            _picture(root / f"{split}/good/{i:03}.png", 10 * number + i)
    for number, kind in enumerate(("logical_anomalies", "structural_anomalies")):
        for i in range(3):
            _picture(root / f"test/{kind}/{i:03}.png", 50 + 10 * number + i)
            _mask(root / f"ground_truth/{kind}/{i:03}/000.png", (2, 240))
            if i == 1:
                _mask(root / f"ground_truth/{kind}/{i:03}/001.png", (8, 90), (9, 255))
    return root


@pytest.fixture
def mvtec3d(tmp_path):
    root = tmp_path / "bagel"
    for number, split in enumerate(("train", "validation", "test")):
        for i in range(2):
            _picture(root / f"{split}/good/rgb/{i:03}.png", 10 * number + i)
    (root / "train/good/xyz").mkdir()
    (root / "train/good/xyz/000.tiff").write_bytes(b"points")
    for i in range(3):
        _picture(root / f"test/hole/rgb/{i:03}.png", 70 + i)
        _mask(root / f"test/hole/gt/{i:03}.png", (5, 255))
    return root


def _ingest(source, tmp_path, layout="auto"):
    summary = ingest_source(source, "thing", tmp_path / "out", layout)
    return summary, record_rows(tmp_path / "out/records.parquet")


def test_visa_keeps_its_split_and_all_mask_values(visa, tmp_path):
    summary, records = _ingest(visa, tmp_path)
    assert summary["layout"] == "visa" and summary["defects"] == {"anomaly": 4}
    assert summary["splits"] == {"test": 2, "train": 4}
    mask = load_mask(tmp_path / "out" / next(r.mask for r in records if r.mask))
    assert mask.any(1).nonzero()[0].tolist() == [3, 9]  # value 1 beside value 5
    divided = split_records(records, "first_third")
    assert [r.split for r in divided if r.mask] == ["train", "test", "test", "test"]
    test_images = [r.source[-8:].lower() for r in divided if not r.mask and r.split == "test"]
    assert test_images == ["0001.jpg", "0004.jpg"]


def test_visa_split_file_is_optional_and_checked(visa, tmp_path):
    file = visa.parent / "split_csv/1cls.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "Normal/0003" not in line))
    with pytest.raises(InputError, match=r"has no row for candle/Data/Images/Normal/0003\.JPG"):
        read_layout(visa, "candle")
    file.write_text("\n".join(line.replace("train", "fit") for line in lines))
    with pytest.raises(InputError, match="split 'fit'; expected train or test"):
        read_layout(visa, "candle")
    file.write_text("name,where\na,b\n")
    with pytest.raises(InputError, match="column 'object' is missing"):
        read_layout(visa, "candle")
    file.unlink()
    assert {item.split_hint for item in read_layout(visa, "candle").items} == {""}


def test_loco_unites_the_masks_of_an_image(loco, tmp_path):
    summary, records = _ingest(loco, tmp_path)
    assert summary["layout"] == "loco"
    assert summary["defects"] == {"logical_anomalies": 3, "structural_anomalies": 3}
    assert summary["splits"] == {"test": 3, "train": 6}
    masks = {r.source: load_mask(tmp_path / "out" / r.mask) for r in records if r.mask}
    assert masks["test/logical_anomalies/001.png"].any(1).nonzero()[0].tolist() == [2, 8, 9]
    assert masks["test/logical_anomalies/000.png"].any(1).nonzero()[0].tolist() == [2]


def test_mvtec3d_reads_images_and_ignores_point_clouds(mvtec3d, tmp_path):
    summary, records = _ingest(mvtec3d, tmp_path)
    assert summary["layout"] == "mvtec3d" and summary["defects"] == {"hole": 3}
    assert summary["splits"] == {"test": 2, "train": 4}
    assert all(r.image.endswith(".png") for r in records)


@pytest.mark.parametrize("layout", ["visa", "loco", "mvtec3d"])
def test_missing_masks_and_options_of_other_layouts_are_errors(layout, request):
    source = request.getfixturevalue(layout)
    with pytest.raises(InputError, match=f"options\\.good: not an option of layout {layout}"):
        read_layout(source, "thing", layout, {"good": "x"})
    missing = {"visa": "Data/Masks/Anomaly/001.png", "loco": "ground_truth/logical_anomalies/002/000.png"}
    (source / missing.get(layout, "test/hole/gt/001.png")).unlink()
    with pytest.raises(InputError, match="has no mask; expected"):
        read_layout(source, "thing", layout)


def test_option_defects_selects_defect_types(loco):
    items = read_layout(loco, "thing", "auto", {"defects": ["structural_anomalies"]}).items
    assert {item.defect for item in items} == {"good", "structural_anomalies"}
