"""The composite: exact outside the mask, soft inside."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defect_core.generators.composite import composite, feather_mask


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, (12, 14, 3)),
    arrays(np.float32, (12, 14, 3), elements=st.floats(-50, 300, width=32)),
    arrays(bool, (12, 14)),
    st.floats(0, 5),
)
def test_nothing_changes_outside_the_mask(normal, generated, mask, feather):
    out = composite(normal, generated, mask, feather)
    assert out.dtype == np.uint8
    assert (out[~mask] == normal[~mask]).all()


def test_without_feather_the_inside_is_the_generated_image():
    normal, generated = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    out = composite(normal, generated, mask, 0)
    assert (out[mask] == 200).all()


def test_the_feather_rises_inward_and_keeps_every_mask_pixel():
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    mask[0, 0] = True
    weight = feather_mask(mask, 2)
    assert (weight[mask] > 0).all() and (weight[~mask] == 0).all()
    assert weight[4, 10] < weight[5, 10] < weight[7, 10] == 1
