"""Masks with thousands of components: the same results as the direct method, in bounded time and memory."""

import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from defect_core.data.annotations.rle import decode_runs
from defect_core.data.masks import component_widths, components, downsample_mask
from defect_core.export.shapes import component_to_rle, mask_to_polygons

MASKS = st.builds(
    lambda mask, rows, columns: mask.repeat(rows, 0).repeat(columns, 1),
    hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans()),
    st.integers(1, 3),
    st.integers(1, 3),
)
SPARSE = st.builds(
    lambda shape, density, seed: np.random.default_rng(seed).random(shape) < density,
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([0.01, 0.05, 0.2, 0.5]),
    st.integers(0, 10**6),
)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def _direct_coverage(mask, size):
    """Return the covered fraction of each cell as a product with two dense matrices."""

    def overlap(old, new):
        edges_new, edges_old = np.arange(new + 1) * (old / new), np.arange(old + 1)
        low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
        high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
        return np.clip(high - low, 0, None) * (new / old)

    return overlap(mask.shape[0], size[0]) @ mask.astype(np.float64) @ overlap(mask.shape[1], size[1]).T


def _direct_components(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return [labels == i + 1 for i in sorted(range(count), key=lambda i: (-areas[i], i))]


def _direct_area(mask, size):
    """Return `downsample_mask(mask, size, "area")` by the coverage of each component in the whole mask."""
    result = _direct_coverage(mask, size) > 0.5 + 1e-9
    for part in _direct_components(mask):
        touched = _direct_coverage(part, size) > 1e-9
        if not (result & touched).any():
            result |= touched
    return result


@settings(max_examples=300, deadline=None)
@given(st.one_of(MASKS, SPARSE), SIZES)
def test_resampling_equals_the_direct_method(mask, size):
    if mask.shape == size:
        return
    assert np.array_equal(downsample_mask(mask, size, "max"), _direct_coverage(mask, size) > 1e-9)
    assert np.array_equal(downsample_mask(mask, size, "area"), _direct_area(mask, size))


@settings(max_examples=150, deadline=None)
@given(st.one_of(MASKS, SPARSE))
def test_components_and_their_run_lengths_equal_the_direct_method(mask):
    parts, expected = components(mask), _direct_components(mask)
    assert len(parts) == len(expected)
    for part, direct in zip(parts, expected, strict=True):
        placed = np.zeros_like(mask)
        part.add_to(placed)
        assert np.array_equal(placed, direct) and part.area == direct.sum()
        lengths = component_to_rle(part, *mask.shape)
        assert np.array_equal(decode_runs(lengths, *mask.shape, order="F"), direct) and all(lengths[1:])


@settings(max_examples=80, deadline=None)
@given(st.one_of(MASKS, SPARSE))
def test_width_is_the_side_of_the_largest_square(mask):
    widths = []
    for part in _direct_components(mask):
        side = 0
        while ndimage.minimum_filter(np.pad(part, 1), side + 1, mode="constant", cval=0).any():
            side += 1
        widths.append(side)
    assert component_widths(mask).tolist() == widths


@pytest.mark.parametrize(("shape", "width"), [((1, 90), 1), ((2, 90), 2), ((5, 3), 3), ((4, 4), 4), ((7, 9), 7)])
def test_widths_of_rectangles(shape, width):
    assert component_widths(np.ones(shape, bool)).tolist() == [width]
    assert component_widths(np.pad(np.ones(shape, bool), 3)).tolist() == [width]


def many_components(side=2048, per_side=100):
    """Return a mask of `per_side` squared rectangles of 1 to 8 pixels."""
    mask, rng = np.zeros((side, side), bool), np.random.default_rng(0)
    for row in range(per_side):
        for column in range(per_side):
            top, left = row * side // per_side + 2, column * side // per_side + 2
            height, width = rng.integers(1, 9, 2)
            mask[top : top + height, left : left + width] = True
    return mask


def _print_cost():
    """Print processor seconds of each operation, and the growth of the memory in MB; runs in a separate process."""
    from defect_core.evaluation.segmentation.data import resize_sample

    mask = many_components()
    image = np.zeros((*mask.shape, 3), np.uint8)
    assert len(components(mask)) == 10_000
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (128, 256, 1024):
        resize_sample(image, mask, side)
        downsample_mask(mask, side, "max")
    resampled = time.process_time()
    component_widths(mask)
    measured = time.process_time()
    for part in components(mask):
        component_to_rle(part, *mask.shape)
    mask_to_polygons(mask)
    exported = time.process_time()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(resampled - start, measured - resampled, exported - measured, grown)


def test_ten_thousand_components_take_two_seconds_and_300_megabytes():
    ran = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    *seconds, megabytes = (float(value) for value in ran.stdout.split())
    assert max(seconds) < 2
    assert megabytes < 300


if __name__ == "__main__":
    _print_cost()
