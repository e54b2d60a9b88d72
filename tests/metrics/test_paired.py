"""Paired differences: coverage over simulated test sets and seeds, the files, and how many images or seeds decide."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.errors import InputError
from defect_core.metrics.bootstrap import bootstrap_weights, image_tables
from defect_core.metrics.image_results import (
    ArmScores,
    average_arm_scores,
    load_arm_scores,
    load_tables,
    make_arm_scores,
    save_arm_scores,
    save_tables,
)
from defect_core.metrics.localisation import localisation_scores
from defect_core.metrics.paired import paired_difference


def _arm(values, weights=None):
    """Return an arm whose score is the mean over images of `values` `[K,N]`."""
    count = values.shape[1]
    label = np.arange(count) % 2 == 0
    weights = bootstrap_weights(label, 0, 200) if weights is None else weights
    return ArmScores(
        tuple(map(str, range(count))),
        label,
        tuple(range(len(values))),
        {"pixel_ap": values.mean(1)},
        {"pixel_ap": values @ weights.T / count},
    )


def _pair(rng, count=40, seeds=3, seed_std=0.02, image_std=0.1, mixed_std=0.1, weights=None):
    common = rng.normal(0, 0.5, count)
    return [
        _arm(
            common
            + rng.normal(0, image_std, count)
            + rng.normal(0, seed_std, (seeds, 1))
            + rng.normal(0, mixed_std, (seeds, count)),
            weights,
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize(("seeds", "seed_std", "mixed_std"), [(3, 0.03, 0.0), (3, 0.01, 0.2), (5, 0.03, 0.1)])
def test_bounds_hold_in_95_of_100_simulated_experiments(seeds, seed_std, mixed_std):
    rng = np.random.default_rng(1)
    weights = bootstrap_weights(np.arange(40) % 2 == 0, 0, 200)
    bounds = [
        (found.value - found.half_width(0.95), found.value + found.half_width(0.95))
        for found in (
            paired_difference(*_pair(rng, 40, seeds, seed_std, 0.05, mixed_std, weights), "pixel_ap")
            for _ in range(600)
        )
    ]
    # 570 are expected, with a standard deviation of 5.3.
    assert sum(low <= 0 for low, _ in bounds) > 554 and sum(high >= 0 for _, high in bounds) > 554


def test_what_both_arms_share_cancels_and_more_of_either_shortens_the_interval():
    rng = np.random.default_rng(0)
    one, other = _pair(rng, seed_std=0.03, image_std=0.1, mixed_std=0.2)
    found = paired_difference(one, other, "pixel_ap")
    # Means over 40 images with a common standard deviation of 0.5: unpaired, the error would be 0.11.
    assert found.standard_error < 0.05
    assert found.half_width(0.95, factor=4) < found.half_width(0.95)
    assert found.half_width(0.95, more_seeds=3) < found.half_width(0.95)
    wanted = 0.6 * found.half_width(0.95)
    images, seeds = found.images_needed(wanted, 0.95), found.seeds_needed(wanted, 0.95)
    for number, width in (
        (images, lambda n: found.half_width(0.95, 1 + n / 40)),
        (seeds, lambda n: found.half_width(0.95, more_seeds=n)),
    ):
        assert number is None or width(number) <= wanted < width(number - 2)
    assert found.images_needed(0.0, 0.95) is None and found.seeds_needed(0.0, 0.95) is None


def test_an_arm_against_itself_has_no_difference_but_the_error_of_its_seeds():
    arm = _pair(np.random.default_rng(0), mixed_std=0.0)[0]
    found = paired_difference(arm, arm, "pixel_ap")
    assert found.value == 0 and found.image_variance == pytest.approx(0, abs=1e-12)
    assert found.standard_error == pytest.approx(np.sqrt(2 * arm.value["pixel_ap"].var(ddof=1) / 3), rel=1e-3)
    assert found.degrees == pytest.approx(4, rel=1e-3)  # Welch: two arms with two degrees of freedom each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arm: arm.images[1:], "other images"),
        (lambda arm: None, "pixel_ap is undefined"),
        (lambda arm: 1, "one seed; expected at least 2"),
    ],
)
def test_a_difference_that_is_not_defined_says_why(change, message):
    one, other = _pair(np.random.default_rng(0))
    changed = change(one)
    if isinstance(changed, tuple):
        one = ArmScores(changed, one.label, one.seeds, one.value, one.resampled)
    elif changed is None:
        one.value["pixel_ap"][1] = np.nan
    else:
        single = [{"pixel_ap": scores["pixel_ap"][:1]} for scores in (one.value, one.resampled)]
        one = ArmScores(one.images, one.label, (0,), *single)
    with pytest.raises(InputError, match=message):
        paired_difference(one, other, "pixel_ap")


def test_equal_escapes_of_few_images_are_no_proof():
    label = np.arange(40) < 20
    arm = ArmScores(
        tuple(map(str, range(40))), label, (0, 1), {"escape@0.01": np.zeros(2)}, {"escape@0.01": np.zeros((2, 50))}
    )
    found = paired_difference(arm, arm, "escape@0.01")
    # One image on which the arms differ could have been unseen: a standard error of 1/20.
    assert found.standard_error == pytest.approx(0.05)


def _maps(count=14):
    rng = np.random.default_rng(3)
    masks = ndimage.binary_dilation(rng.random((count, 24, 24)) > 0.99, np.ones((1, 3, 3)), 2)
    masks[::2] = False
    return [(1 / (1 + np.exp(-rng.normal(size=masks.shape) - masks))).astype(np.float32) for _ in range(2)], masks


def test_both_files_give_back_what_was_written_with_equal_bytes(tmp_path):
    maps, masks = _maps()
    names, tables = [f"{i}.png" for i in range(14)], [image_tables(list(m), list(masks), 3) for m in maps]
    exact = [localisation_scores(m, list(masks), window=3) for m in maps]
    arm = make_arm_scores(names, (4, 2), tables, exact, 0, {"0.01": [float(t.score.mean()) for t in tables]})
    for number in range(2):
        save_arm_scores(arm, tmp_path / f"scores{number}")
        save_tables(tables, names, (4, 2), tmp_path / f"tables{number}")
    assert (tmp_path / "scores0").read_bytes() == (tmp_path / "scores1").read_bytes()
    assert (tmp_path / "tables0").read_bytes() == (tmp_path / "tables1").read_bytes()
    read = load_arm_scores(tmp_path / "scores0")
    assert read.images == tuple(names) and read.seeds == (4, 2) and read.has_images_of(arm)
    for name, values in arm.value.items():
        assert np.array_equal(read.value[name], values)
        assert np.allclose(read.resampled[name], arm.resampled[name], atol=1e-6)
    # Escapes by hand: defective images at or below the threshold.
    first = tables[0]
    escapes = (first.score[first.label] <= first.score.mean()).mean()
    assert read.value["escape@0.01"][0] == escapes > 0
    assert abs(read.resampled["escape@0.01"][0].mean() - escapes) < 0.03
    stored, found = load_tables(tmp_path / "tables0")
    assert found == names
    for table, read_table in zip(tables, stored, strict=True):
        for name, one, other in zip(table._fields, table, read_table, strict=True):
            assert np.allclose(one, other, rtol=1e-6), name


def test_a_file_of_another_kind_is_an_error_of_one_line(tmp_path):
    (tmp_path / "broken").write_bytes(b"no tensors")
    for name, message in (("broken", "not readable"), ("absent", "missing")):
        with pytest.raises(InputError, match=message):
            load_arm_scores(tmp_path / name)


def test_the_mean_over_products_keeps_only_shared_scores():
    one, other = _pair(np.random.default_rng(0))
    other.value["pro"], other.resampled["pro"] = other.value["pixel_ap"], other.resampled["pixel_ap"]
    mean = average_arm_scores({"a": one, "b": other})
    assert set(mean.value) == {"pixel_ap"} and len(mean.images) == 80
    assert np.allclose(mean.value["pixel_ap"], (one.value["pixel_ap"] + other.value["pixel_ap"]) / 2)
