"""Views, crops and batches: what keeps the arms of the classifier comparable."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.data.records import save_png
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import batch_plans, crop_around, load_views
from defect_core.evaluation.segmentation.data import synthetic_share


@given(
    real=st.lists(st.integers(0, 2), max_size=9),
    synthetic=st.lists(st.integers(0, 2), max_size=20),
    fraction=st.sampled_from([0.0, 0.3, 1.0, "pooled"]),
    batch=st.integers(2, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_arm_sees_the_same_types_in_the_same_order_for_as_many_steps(real, synthetic, fraction, batch, seed):
    real = [0, 1, 2, *real]
    config = ClassifierConfig(steps=12, batch_size=batch, synthetic_fraction=fraction)
    with_none = list(batch_plans(config, real, [], 3, seed))
    plans = list(batch_plans(config, real, synthetic, 3, seed))
    assert len(plans) == len(with_none) == 12
    assert {len(plan.real) + len(plan.synthetic) for plan in plans} == {batch}
    for plan, other in zip(plans, with_none, strict=True):
        seen = sorted([*(real[i] for i in plan.real), *(synthetic[i] for i in plan.synthetic)])
        assert seen == sorted(real[i] for i in other.real)
    if set(synthetic) == {0, 1, 2}:
        made = sum(len(plan.synthetic) for plan in plans)
        assert made == pytest.approx(synthetic_share(fraction, len(real), len(synthetic)) * 12 * batch, abs=1)


def test_types_come_equally_often_however_many_images_they_have():
    config = ClassifierConfig(steps=30, batch_size=4)
    labels = [0] * 50 + [1] * 2 + [2]
    seen = [labels[i] for plan in batch_plans(config, labels, [], 3, 0) for i in plan.real]
    assert np.bincount(seen).tolist() == [40, 40, 40]


def test_a_type_that_no_synthetic_image_has_is_learned_from_real_ones():
    config = ClassifierConfig(steps=9, batch_size=4, synthetic_fraction=1.0)
    plans = list(batch_plans(config, [0, 1], [0, 0], 2, 0))
    assert {i for plan in plans for i in plan.real} == {1}
    assert {i for plan in plans for i in plan.synthetic} == {0, 1}


@given(
    box=st.tuples(st.integers(0, 59), st.integers(0, 79), st.integers(1, 60), st.integers(1, 80)),
)
@settings(max_examples=50, deadline=None)
def test_a_crop_lies_in_the_image_and_holds_the_mask(box):
    mask = np.zeros((60, 80), bool)
    mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)
    crop = crop_around(image, mask)
    assert crop.shape[2] == 3 and min(crop.shape[:2]) >= 15
    assert (crop[..., 0] == 255).sum() == mask.sum()


def test_an_empty_mask_crops_nothing():
    image = np.zeros((20, 30, 3), np.uint8)
    assert crop_around(image, np.zeros((20, 30), bool)) is image


def test_images_of_other_types_are_left_out(tmp_path):
    save_png(np.zeros((20, 30, 3), np.uint8), tmp_path / "a.png")
    mask = np.zeros((20, 30), bool)
    mask[:2, :2] = True
    save_png(mask, tmp_path / "m.png")
    items = [SimpleNamespace(defect=name, image="a.png", mask="m.png") for name in ("dent", "hole", "rust")]
    for view in ("image", "crop"):
        views = load_views(items, tmp_path, ["dent", "rust"], ClassifierConfig(image_size=32, view=view))
        assert [v.label for v in views] == [0, 1] and views[0].image.shape == (32, 32, 3)
