"""The demo products: exact masks, the same again, in the promised layout."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.data import demo
from defect_core.data.demo import DEMO_PRODUCTS, demo_defects, draw_image
from defect_core.data.layouts import ingest
from defect_core.data.records import load_image, load_mask, read_records
from defect_core.data.splits import split_records
from defect_core.errors import InputError

KINDS = [(product, defect) for product in DEMO_PRODUCTS for defect in demo_defects(product)]


@pytest.mark.parametrize(("product", "defect"), KINDS)
def test_the_mask_is_exactly_where_the_defect_is(product, defect):
    changes, areas = [], []
    for index in range(12):
        drawn = draw_image(product, defect, 5, index)
        assert drawn.image.shape == drawn.clean.shape == (128, 128, 3) and drawn.image.dtype == np.uint8
        change = np.abs(drawn.image.astype(int) - drawn.clean).max(axis=2)
        near = ndimage.binary_dilation(drawn.mask, np.ones((3, 3)), iterations=2)
        assert change[~near].max(initial=0) <= 1  # what rounding leaves of the lens blur
        inside = change[drawn.mask].mean()
        assert inside > 1 and change[drawn.mask].sum() > 0.7 * change.sum()
        assert (change[drawn.mask] > 0).mean() > 0.5
        changes.append(inside)
        areas.append(drawn.mask.sum())
    assert max(changes) > 2 * min(changes) and max(areas) > 2 * min(areas)  # faint and strong, small and large
    assert min(areas) >= 16 and max(areas) < 128 * 128 / 4


@pytest.mark.parametrize("product", DEMO_PRODUCTS)
def test_an_image_depends_on_its_key_alone(product):
    defect = demo_defects(product)[0]
    first = draw_image(product, defect, 0, 3)
    draw_image(product, "train/good", 0, 0)
    again = draw_image(product, defect, 0, 3)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    for other in [(defect, 1, 3), (defect, 0, 4), (demo_defects(product)[1], 0, 3), ("test/good", 0, 3)]:
        assert not np.array_equal(first.clean, draw_image(product, *other).clean)


@pytest.mark.parametrize("product", DEMO_PRODUCTS)
def test_good_images_are_photographs_that_differ(product):
    drawn = [draw_image(product, "train/good", 0, index) for index in range(4)]
    for one in drawn:
        assert not one.mask.any() and np.array_equal(one.image, one.clean)
        assert 40 < one.image.mean() < 215 and (one.image == 255).mean() < 0.02 and (one.image == 0).mean() < 0.02
        fine = one.image[..., 1] - ndimage.gaussian_filter(one.image[..., 1].astype(float), 1)
        assert fine.std() > 0.5  # grain: sensor noise is there
    means = [one.image.mean() for one in drawn]
    assert np.ptp(means) > 1


def test_make_demo_and_ingest(tmp_path, monkeypatch):
    assert (demo.TRAIN_GOOD, demo.TEST_GOOD, demo.PER_DEFECT) == (60, 20, 27)
    for name, count in [("TRAIN_GOOD", 10), ("TEST_GOOD", 4), ("PER_DEFECT", 9)]:
        monkeypatch.setattr(demo, name, count)
    demo.make_demo("flange", tmp_path / "drawn", seed=2)
    kept = draw_image("flange", "chip", 2, 7)
    assert np.array_equal(load_image(tmp_path / "drawn/test/chip/007.png"), kept.image)
    assert np.array_equal(load_mask(tmp_path / "drawn/ground_truth/chip/007_mask.png"), kept.mask)
    direct = ingest(None, "flange", tmp_path / "a", "demo", seed=2)
    from_files = ingest(tmp_path / "drawn", "flange", tmp_path / "b")
    assert direct["layout"] == "demo" and {**direct, "layout": "mvtec"} == from_files
    assert direct["splits"] == {"test": 4, "train": 10} and set(direct["defects"].values()) == {9}
    assert (tmp_path / "a/records.parquet").read_bytes() == (tmp_path / "b/records.parquet").read_bytes()
    done = split_records(read_records(tmp_path / "a/records.parquet"), "first_third")
    for defect in demo_defects("flange"):
        assert sum(r.defect == defect and r.split == "train" for r in done) == 3


def test_unknown_products_and_kinds():
    with pytest.raises(InputError, match="screw: no such demo product; expected one of weave, flange"):
        demo_defects("screw")
    with pytest.raises(InputError, match="'hole'; expected one of train/good, test/good, snag, stain, cut"):
        draw_image("weave", "hole", 0, 0)
