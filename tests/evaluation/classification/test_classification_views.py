"""Views, crops and batches of the classifier, on which the comparison of arms depends."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.data.records import save_png
from defect_core.evaluation.batches import compute_synthetic_fraction
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import crop_around, load_views, plan_batches


@given(
    real=st.lists(st.integers(0, 2), max_size=9),
    synthetic=st.lists(st.integers(0, 2), max_size=20),
    fraction=st.sampled_from([0.0, 0.3, 1.0, "pooled"]),
    batch=st.integers(2, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_arm_has_the_same_defect_types_and_steps(real, synthetic, fraction, batch, seed):
    real = [0, 1, 2, *real]
    config = ClassifierConfig(steps=12, batch_size=batch, synthetic_fraction=fraction)
    without = list(plan_batches(config, real, [], 3, seed))
    plans = list(plan_batches(config, real, synthetic, 3, seed))
    assert len(plans) == len(without) == 12
    assert {len(plan.real) + len(plan.synthetic) for plan in plans} == {batch}
    for plan, other in zip(plans, without, strict=True):
        labels = sorted([*(real[i] for i in plan.real), *(synthetic[i] for i in plan.synthetic)])
        assert labels == sorted(real[i] for i in other.real)
    if set(synthetic) == {0, 1, 2}:
        count = sum(len(plan.synthetic) for plan in plans)
        assert count == pytest.approx(
            compute_synthetic_fraction(fraction, len(real), len(synthetic)) * 12 * batch, abs=1
        )


def test_defect_types_are_equally_frequent_whatever_their_image_count():
    config = ClassifierConfig(steps=30, batch_size=4)
    labels = [0] * 50 + [1] * 2 + [2]
    used = [labels[i] for plan in plan_batches(config, labels, [], 3, 0) for i in plan.real]
    assert np.bincount(used).tolist() == [40, 40, 40]


def test_a_defect_type_without_synthetic_images_uses_real_ones():
    config = ClassifierConfig(steps=9, batch_size=4, synthetic_fraction=1.0)
    plans = list(plan_batches(config, [0, 1], [0, 0], 2, 0))
    assert {i for plan in plans for i in plan.real} == {1}
    assert {i for plan in plans for i in plan.synthetic} == {0, 1}


@given(
    box=st.tuples(st.integers(0, 59), st.integers(0, 79), st.integers(1, 60), st.integers(1, 80)),
)
@settings(max_examples=50, deadline=None)
def test_a_crop_is_inside_the_image_and_contains_the_mask(box):
    mask = np.zeros((60, 80), bool)
    mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)
    crop = crop_around(image, mask)
    assert crop.shape[2] == 3 and min(crop.shape[:2]) >= 15
    assert (crop[..., 0] == 255).sum() == mask.sum()


def test_an_empty_mask_gives_the_whole_image():
    image = np.zeros((20, 30, 3), np.uint8)
    assert crop_around(image, np.zeros((20, 30), bool)) is image


def test_images_of_other_defect_types_are_left_out(tmp_path):
    save_png(np.zeros((20, 30, 3), np.uint8), tmp_path / "a.png")
    mask = np.zeros((20, 30), bool)
    mask[:2, :2] = True
    save_png(mask, tmp_path / "m.png")
    items = [SimpleNamespace(defect=name, image="a.png", mask="m.png") for name in ("dent", "hole", "rust")]
    for view in ("image", "crop"):
        views = load_views(items, tmp_path, ["dent", "rust"], ClassifierConfig(image_size=32, view=view))
        assert [v.label for v in views] == [0, 1] and views[0].image.shape == (32, 32, 3)
