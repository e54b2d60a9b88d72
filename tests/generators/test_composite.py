"""The composite: unchanged outside the mask, with a soft edge inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defect_core.generators.composite import composite, feather_mask, is_gray, paste


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, (12, 14, 3)),
    arrays(np.float32, (12, 14, 3), elements=st.floats(-50, 300, width=32)),
    arrays(bool, (12, 14)),
    st.floats(0, 5),
)
def test_the_image_is_unchanged_outside_the_mask(normal, generated, mask, feather):
    out = composite(normal, generated, mask, feather)
    assert out.dtype == np.uint8
    assert (out[~mask] == normal[~mask]).all()


def test_without_feather_the_inside_is_the_generated_image():
    normal, generated = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    out = composite(normal, generated, mask, 0)
    assert (out[mask] == 200).all()


def test_feather_weights_rise_inward_and_are_positive_in_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    mask[0, 0] = True
    weight = feather_mask(mask, 2)
    assert (weight[mask] > 0).all() and (weight[~mask] == 0).all()
    assert weight[4, 10] < weight[5, 10] < weight[7, 10] == 1


@pytest.mark.parametrize(
    ("surroundings", "expected"), [((180, 180, 180), 80), ((45, 45, 45), 20), ((180, 90, 45), (80, 40, 20))]
)
def test_a_pasted_defect_keeps_its_relative_contrast(surroundings, expected):
    normal = np.zeros((30, 30, 3), np.uint8) + np.array(surroundings, np.uint8)
    source = np.full((30, 30, 3), 90, np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[10:20, 10:20] = True
    source[mask] = 40
    assert np.abs(paste(normal, source, mask, 0, 1.0)[mask].astype(int) - np.array(expected)).max() <= 1
    assert (paste(normal, source, mask, 0, 0.0)[mask] == 40).all()
    everywhere = np.ones_like(mask)
    assert (paste(normal, source, everywhere, 0, 1.0) == source).all()
    dark = np.where(mask[..., None], 40, 0).astype(np.uint8)  # a black ring gives the largest factor
    assert (paste(normal, dark, mask, 0, 1.0)[mask] <= 160).all()


def test_generated_pixels_become_gray_only_on_a_gray_image():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    generated = np.broadcast_to(np.uint8([90, 120, 150]), (8, 8, 3))
    gray, coloured = np.full((8, 8, 3), 40, np.uint8), np.full((8, 8, 3), 40, np.uint8)
    coloured[0, 0, 0] = 41
    assert is_gray(gray) and not is_gray(coloured)
    assert (composite(gray, generated, mask, 0)[mask] == 120).all()
    assert (composite(coloured, generated, mask, 0)[mask] == [90, 120, 150]).all()
