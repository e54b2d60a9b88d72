"""Demo products: exact masks, reproducible images, and the documented layout."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.data.demo import DEMO_PRODUCTS, demo_defects, render, render_demo_image, write_demo_product
from defect_core.data.layouts import ingest_source
from defect_core.data.records import load_image, load_mask, record_rows
from defect_core.data.splits import split_records
from defect_core.errors import InputError

KINDS = [(product, defect) for product in DEMO_PRODUCTS for defect in demo_defects(product)]


@pytest.mark.parametrize(("product", "defect"), KINDS)
def test_mask_is_exactly_where_the_image_changes(product, defect):
    changes, areas = [], []
    for index in range(12):
        demo = render_demo_image(product, defect, 5, index)
        assert demo.image.shape == demo.clean.shape == (128, 128, 3) and demo.image.dtype == np.uint8
        change = np.abs(demo.image.astype(int) - demo.clean).max(axis=2)
        surroundings = ndimage.binary_dilation(demo.mask, np.ones((3, 3)), iterations=2)
        assert change[~surroundings].max(initial=0) <= 1  # remainder of the lens blur after rounding
        inside = change[demo.mask].mean()
        assert inside > 1 and change[demo.mask].sum() > 0.7 * change.sum()
        assert (change[demo.mask] > 0).mean() > 0.5
        changes.append(inside)
        areas.append(demo.mask.sum())
    assert max(changes) > 2 * min(changes) and max(areas) > 2 * min(areas)  # weak and strong, small and large defects
    assert min(areas) >= 16 and max(areas) < 128 * 128 / 4


@pytest.mark.parametrize("product", DEMO_PRODUCTS)
def test_image_depends_on_product_kind_seed_and_index_only(product):
    defect = demo_defects(product)[0]
    first = render_demo_image(product, defect, 0, 3)
    render_demo_image(product, "train/good", 0, 0)
    again = render_demo_image(product, defect, 0, 3)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    for other in [(defect, 1, 3), (defect, 0, 4), (demo_defects(product)[1], 0, 3), ("test/good", 0, 3)]:
        assert not np.array_equal(first.clean, render_demo_image(product, *other).clean)


@pytest.mark.parametrize("product", DEMO_PRODUCTS)
def test_normal_images_have_sensor_noise_and_differ(product):
    images = [render_demo_image(product, "train/good", 0, index) for index in range(4)]
    for one in images:
        assert not one.mask.any() and np.array_equal(one.image, one.clean)
        assert 40 < one.image.mean() < 215 and (one.image == 255).mean() < 0.02 and (one.image == 0).mean() < 0.02
        fine = one.image[..., 1] - ndimage.gaussian_filter(one.image[..., 1].astype(float), 1)
        assert fine.std() > 0.5  # sensor noise
    means = [one.image.mean() for one in images]
    assert np.ptp(means) > 1


def test_written_product_equals_direct_ingestion(tmp_path, monkeypatch):
    assert (render.TRAIN_NORMAL, render.TEST_NORMAL, render.PER_DEFECT) == (60, 20, 27)
    for name, count in [("TRAIN_NORMAL", 10), ("TEST_NORMAL", 4), ("PER_DEFECT", 9)]:
        monkeypatch.setattr(render, name, count)
    write_demo_product("flange", tmp_path / "rendered", seed=2)
    expected = render_demo_image("flange", "chip", 2, 7)
    assert np.array_equal(load_image(tmp_path / "rendered/test/chip/007.png"), expected.image)
    assert np.array_equal(load_mask(tmp_path / "rendered/ground_truth/chip/007_mask.png"), expected.mask)
    direct = ingest_source(None, "flange", tmp_path / "a", "demo", seed=2)
    from_files = ingest_source(tmp_path / "rendered", "flange", tmp_path / "b")
    assert direct["layout"] == "demo" and {**direct, "layout": "mvtec"} == from_files
    assert direct["splits"] == {"test": 4, "train": 10} and set(direct["defects"].values()) == {9}
    assert (tmp_path / "a/records.parquet").read_bytes() == (tmp_path / "b/records.parquet").read_bytes()
    divided = split_records(record_rows(tmp_path / "a/records.parquet"), "first_third")
    for defect in demo_defects("flange"):
        assert sum(r.defect == defect and r.split == "train" for r in divided) == 3


def test_unknown_product_or_kind_is_an_error():
    with pytest.raises(InputError, match="screw: no such demo product; expected one of weave, flange"):
        demo_defects("screw")
    with pytest.raises(InputError, match="'hole'; expected one of train/good, test/good, snag, stain, cut"):
        render_demo_image("weave", "hole", 0, 0)
