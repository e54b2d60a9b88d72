"""Resampling of masks: no defect is lost, and each policy does what its documentation says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from defect_core.data.masks import bounding_box, components, downsample_mask

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans())
SPARSE = st.builds(
    lambda shape, pixels: _mask_of_pixels(shape, pixels),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), max_size=4),
)
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def _mask_of_pixels(shape, pixels):
    mask = np.zeros(shape, dtype=bool)
    for r, c in pixels:
        mask[int(r * shape[0]), int(c * shape[1])] = True
    return mask


def _full_components(mask):
    """Return the components at the size of the mask."""
    parts = []
    for component in components(mask):
        parts.append(np.zeros_like(mask))
        component.add_to(parts[-1])
    return parts


def _covered(mask, size):
    """Return the covered fraction of each cell, counted on a common grid of both sizes."""
    fine = mask.repeat(size[0], 0).repeat(size[1], 1)
    return fine.reshape(size[0], mask.shape[0], size[1], mask.shape[1]).mean(axis=(1, 3))


@settings(max_examples=150, deadline=None)
@given(st.one_of(MASKS, SPARSE), SIZES)
def test_max_and_area_agree_with_counted_coverage(mask, size):
    cover = _covered(mask, size)
    assert np.array_equal(downsample_mask(mask, size, "max"), cover > 0)
    area = downsample_mask(mask, size, "area")
    assert area[cover > 0.5].all()
    assert not (area & (cover == 0)).any()
    for part in _full_components(mask):
        touched = _covered(part, size) > 0
        assert (area & touched).any()


@settings(max_examples=100, deadline=None)
@given(MASKS, SIZES, st.sampled_from(["max", "area", "nearest", "bilinear"]))
def test_full_and_empty_masks_and_same_size_stay_unchanged(mask, size, policy):
    assert np.array_equal(downsample_mask(mask, mask.shape, policy), mask)
    assert downsample_mask(np.ones_like(mask), size, policy).all()
    assert not downsample_mask(np.zeros_like(mask), size, policy).any()
    result = downsample_mask(mask, size, policy)
    assert result.shape == size and result.dtype == bool


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 3), st.integers(1, 3))
def test_policies_invert_the_repetition_of_pixels(mask, rows, columns):
    large = mask.repeat(rows, 0).repeat(columns, 1)
    for policy in ("max", "area", "nearest"):
        assert np.array_equal(downsample_mask(large, mask.shape, policy), mask)
        assert np.array_equal(downsample_mask(mask, large.shape, policy), large)


def test_area_keeps_a_single_pixel_without_thickening_a_large_component():
    mask = np.zeros((32, 32), dtype=bool)
    mask[1:14, 1:14] = True
    mask[29, 30] = True
    small = downsample_mask(mask, 8, "area")
    assert small[7, 7] and small.sum() == 1 + 9
    assert downsample_mask(mask, 8, "max").sum() == 1 + 16
    assert not downsample_mask(mask, 8, "bilinear")[7, 7]


@settings(max_examples=80, deadline=None)
@given(MASKS)
def test_components_partition_the_mask_and_boxes_are_tight(mask):
    parts = _full_components(mask)
    assert np.array_equal(sum((part.astype(int) for part in parts), np.zeros(mask.shape, int)), mask)
    areas = [int(part.sum()) for part in parts]
    assert areas == sorted(areas, reverse=True)
    assert len(parts) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert len(components(mask, min_area=3)) == sum(area >= 3 for area in areas)
    if not mask.any():
        with pytest.raises(ValueError, match="empty"):
            bounding_box(mask)
        return
    top, left, bottom, right = bounding_box(mask)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    assert not (mask & ~inside).any()
    assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()


def test_wrong_policy_or_size_is_an_error():
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="unknown mask policy 'cubic'"):
        downsample_mask(mask, 2, "cubic")
    with pytest.raises(ValueError, match="at least one pixel"):
        downsample_mask(mask, (0, 2))
