"""Batches, held-out images, resizing and augmentation, on which the comparison of arms depends."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from defect_core.data.records import Record
from defect_core.errors import InputError
from defect_core.evaluation.batches import auto_synthetic_fraction, compute_synthetic_fraction, hold_out
from defect_core.evaluation.segmentation.augment import augment_batch
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample, load_samples, plan_batches, resize_sample
from defect_core.evaluation.segmentation.measure import resolve_config


def _record(name, mask):
    defect = "good" if mask is None else "dent"
    return Record(
        product="disc", defect=defect, image=name, mask=mask, split="train", sha256="0" * 64, width=96, height=64
    )


def test_every_arm_has_the_same_normal_images_in_the_same_batches():
    config = SegmenterConfig(steps=40, batch_size=8, synthetic_fraction=0.5)
    real_only = list(plan_batches(config, 11, 7, 0, seed=3))
    synthetic = list(plan_batches(config, 11, 7, 50, seed=3))
    assert [p.normal for p in real_only] == [p.normal for p in synthetic]
    assert {len(p.normal) for p in real_only} == {4}
    assert {(len(p.real), len(p.synthetic)) for p in real_only} == {(4, 0)}
    assert {(len(p.real), len(p.synthetic)) for p in synthetic} == {(2, 2)}
    assert len(real_only) == len(synthetic) == 40
    assert real_only != list(plan_batches(config, 11, 7, 0, seed=4))


@given(
    counts=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    arms=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([0.0, 0.25, 0.7, 1.0, "pooled"])), min_size=2, max_size=4
    ),
    batch=st.integers(2, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_all_arms_have_the_same_steps_slots_and_normal_images(counts, arms, batch, seed):
    """For any number and fraction of synthetic images."""
    plans = []
    for synthetic, fraction in arms:
        config = SegmenterConfig(steps=12, batch_size=batch, synthetic_fraction=fraction)
        plans.append(list(plan_batches(config, *counts, synthetic, seed)))
        expected = compute_synthetic_fraction(fraction, counts[1], synthetic)
        slots = sum(len(plan.real) + len(plan.synthetic) for plan in plans[-1])
        assert sum(len(plan.synthetic) for plan in plans[-1]) == pytest.approx(expected * slots, abs=1)
    assert {len(plan) for plan in plans} == {12} and {sum(map(len, step)) for plan in plans for step in plan} == {batch}
    assert all([step.normal for step in plan] == [step.normal for step in plans[0]] for plan in plans)


def test_pooled_uses_every_defect_image_equally_often():
    config = SegmenterConfig(steps=300, batch_size=8, synthetic_fraction="pooled")
    plans = list(plan_batches(config, 5, 10, 20, seed=0))
    assert sum(len(p.synthetic) for p in plans) == 800 and sum(len(p.real) for p in plans) == 400
    times = (
        np.bincount([i for p in plans for i in p.real]).tolist()
        + np.bincount([i for p in plans for i in p.synthetic]).tolist()
    )
    assert set(times) == {40}


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_synthetic_fraction_is_met_on_average_and_batches_are_full(fraction):
    config = SegmenterConfig(steps=100, batch_size=8, synthetic_fraction=fraction)
    plans = list(plan_batches(config, 5, 5, 5, seed=0))
    assert {sum(map(len, p)) for p in plans} == {8}
    assert sum(len(p.synthetic) for p in plans) == pytest.approx(400 * fraction, abs=1)


def test_the_automatic_fraction_falls_with_more_than_four_real_examples():
    assert [auto_synthetic_fraction(n) for n in (0, 1, 2, 4)] == [1 / 3] * 4
    assert auto_synthetic_fraction(8) == 0.2
    fractions = [auto_synthetic_fraction(n) for n in range(4, 200)]
    assert all(0 < later < earlier for earlier, later in pairwise(fractions))


@pytest.mark.parametrize(
    ("config_values", "fraction", "expected"),
    [
        ({}, None, 0.2),
        ({}, 0.25, 0.25),
        ({"synthetic_fraction": 0.7}, None, 0.7),
        ({"synthetic_fraction": 1}, 0.5, 0.5),
    ],
)
def test_a_given_fraction_replaces_the_automatic_one(config_values, fraction, expected):
    """Dents of two products are two defect types: 24 images of three types, eight each."""
    defect_types = [("a", "dent")] * 7 + [("a", "hole")] * 9 + [("b", "dent")] * 8
    config = resolve_config(SegmenterConfig(**config_values), defect_types, fraction)
    assert config.synthetic_fraction == pytest.approx(expected)


def test_every_image_is_used_once_before_any_is_used_again():
    plans = list(plan_batches(SegmenterConfig(steps=6, batch_size=8), 12, 8, 0, seed=0))
    real = [i for p in plans for i in p.real]
    assert sorted(real[:8]) == list(range(8)) and sorted(real[8:16]) == list(range(8))


def test_without_real_or_normal_images_the_others_fill_their_slots():
    config = SegmenterConfig(steps=3, batch_size=8)
    assert {(len(p.real), len(p.synthetic)) for p in plan_batches(config, 5, 0, 9, seed=0)} == {(0, 4)}
    assert {len(p.real) for p in plan_batches(config, 0, 9, 0, seed=0)} == {8}


@pytest.mark.parametrize("count", range(0, 12))
def test_hold_out_parts_are_disjoint_and_training_is_not_empty(count):
    samples = [Sample(np.full((1, 1, 3), i), np.zeros((1, 1), bool)) for i in range(count)]
    train, held = hold_out(samples, 0.2)
    ids = [int(s.image[0, 0, 0]) for s in (*train, *held)]
    assert sorted(ids) == list(range(count))
    assert len(held) == count // 5
    assert len(hold_out(samples, 1.0)[0]) >= min(count, 1)


def test_resizing_preserves_every_defect_component():
    image, mask = np.zeros((512, 384, 3), np.uint8), np.zeros((512, 384), bool)
    mask[100, 200] = mask[400:420, 50:70] = True
    image[100, 200] = 255
    sample = resize_sample(image, mask, 64)
    assert sample.image.shape == (64, 64, 3) and sample.mask.shape == (64, 64)
    assert sample.mask[12, 33] and sample.mask[51, 10]
    assert resize_sample(image, None, 64).mask.sum() == 0


def test_load_samples_reads_records_evenly_up_to_its_limit(tmp_path):
    for i in range(9):
        Image.fromarray(np.full((64, 96, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    mask = np.zeros((64, 96), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    loaded = load_samples([_record(f"{i}.png", None) for i in range(9)], tmp_path, 32, limit=3)
    assert [int(s.image[0, 0, 0]) for s in loaded] == [0, 30, 60]
    (defect,) = load_samples([_record("0.png", "mask.png")], tmp_path, 32)
    assert defect.mask[:16].all() and not defect.mask[16:].any()
    with pytest.raises(InputError):
        load_samples([_record("missing.png", None)], tmp_path, 32)


def test_augmentation_moves_image_and_mask_together():
    y, x = np.mgrid[:64, :64]
    blob = torch.from_numpy(((y - 20) ** 2 + (x - 40) ** 2 < 60).astype(np.float32))
    masks = blob.expand(16, 1, 64, 64)
    images = (masks * 160 + 50).expand(16, 3, 64, 64)
    moved, moved_masks = augment_batch(images, masks, torch.Generator().manual_seed(0))
    for image, mask, before in zip(moved, moved_masks, masks, strict=True):
        correlation = np.corrcoef(image.mean(0).flatten().numpy(), mask.flatten().numpy())[0, 1]
        assert correlation > 0.999
        assert mask.sum() == pytest.approx(float(before.sum()), rel=0.35)
        assert not torch.equal(mask, before)


def test_without_mirroring_no_image_is_flipped_or_rotated_by_90_degrees():
    images = torch.zeros(64, 3, 32, 32)
    images[:, :, :, :8] = 200  # Bright on the left.
    moved, _ = augment_batch(images, images[:, :1] / 255, torch.Generator().manual_seed(0), mirror=False)
    assert (moved[:, :, :, :12].mean((1, 2, 3)) > moved[:, :, :, 20:].mean((1, 2, 3)) + 20).all()
    mirrored, _ = augment_batch(images, images[:, :1] / 255, torch.Generator().manual_seed(0))
    assert not (mirrored[:, :, :, :12].mean((1, 2, 3)) > mirrored[:, :, :, 20:].mean((1, 2, 3)) + 20).all()


def test_augmentation_keeps_a_defect_of_one_pixel_and_repeats_with_its_seed():
    masks = torch.zeros(32, 1, 32, 32)
    masks[:, :, 16, 15] = 1
    images = torch.full((32, 3, 32, 32), 128.0)
    moved, soft = augment_batch(images, masks, torch.Generator().manual_seed(1))
    assert soft.sum((1, 2, 3)).min() > 0.5
    assert torch.equal(moved, augment_batch(images, masks, torch.Generator().manual_seed(1))[0])
    assert not torch.equal(moved, augment_batch(images, masks, torch.Generator().manual_seed(2))[0])


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": 100}, {"synthetic_fraction": 1.5}, {"steps": 0}, {"batch_size": 1}, {"validation_fraction": -1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SegmenterConfig(**wrong)
