"""The canvas: choice of the window, and resizing to the canvas and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.generators.canvas import choose_window, crop_image, crop_mask, resize_to_window


def _box_mask(height, width, top, left, box_height, box_width):
    mask = np.zeros((height, width), bool)
    mask[top : top + box_height, left : left + box_width] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_local_window_is_inside_the_image_and_contains_the_mask(data):
    height, width = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    mask = _box_mask(height, width, top, left, box_height, box_width)
    rng = data.draw(st.sampled_from([None, np.random.default_rng(0)]))
    window = choose_window(mask, "local", 2.0, 32, rng)
    assert window.top >= 0 and window.top + window.height <= height
    assert window.left >= 0 and window.left + window.width <= width
    assert mask[window.slices].sum() == mask.sum()
    assert window.height >= min(32, height) and window.width >= min(32, width)


def test_a_whole_canvas_shows_the_entire_image():
    mask = _box_mask(50, 80, 3, 4, 5, 6)
    window = choose_window(mask, "whole", 2.0, 32)
    assert (window.height, window.width) == (50, 80)


@pytest.mark.parametrize("size", [(128, 128), (700, 500), (60, 90)])
def test_a_defect_of_one_pixel_stays_on_the_canvas(size):
    mask = _box_mask(*size, 17, 23, 1, 1)
    for kind in ("local", "whole"):
        cropped = crop_mask(mask, choose_window(mask, kind, 2.5, 48), 128)
        assert cropped.shape == (128, 128) and cropped.any()


def test_a_smooth_image_is_unchanged_after_resizing_and_back():
    rows, columns = np.mgrid[0:90, 0:70]
    image = np.stack([rows * 2, columns * 3, rows + columns], -1).astype(np.uint8)
    window = choose_window(_box_mask(90, 70, 30, 30, 10, 10), "local", 3.0, 48)
    resized = resize_to_window(crop_image(image, window, 128).astype(np.float32), window)
    assert resized.shape == (window.height, window.width, 3)
    assert np.abs(resized - image[window.slices]).mean() < 1.5
