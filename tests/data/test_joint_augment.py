"""Joint augmentation: image and mask move together, and the defect stays in view."""

import numpy as np
import pytest

from defect_core.data.augment import AugmentOptions, augment_pair

GEOMETRY_ONLY = {"brightness": 0.0, "contrast": 0.0, "colour": 0.0}
SIDE = 120


def _coordinates(height=SIDE, width=SIDE):
    """Return an image whose first two channels are the doubled row and column, so that movements are measurable."""
    row, column = np.mgrid[:height, :width]
    return np.dstack([row * 2, column * 2, np.zeros_like(row)]).astype(np.uint8)


@pytest.mark.parametrize("seed", range(25))
def test_mask_and_image_move_together(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    top, left = rng.integers(30, 70, 2)
    mask[top : top + 20, left : left + 9] = True
    image, moved = augment_pair(_coordinates(), mask, rng, AugmentOptions(**GEOMETRY_ONLY))
    row, column = image[..., 0] / 2, image[..., 1] / 2
    # A pixel of the result comes from (row, column). It is in the mask if that pixel was, up to one pixel of rounding.
    certain = (row >= top + 1) & (row <= top + 18) & (column >= left + 1) & (column <= left + 7)
    possible = (row >= top - 1) & (row <= top + 20) & (column >= left - 1) & (column <= left + 9)
    assert moved[certain].all() and not moved[~possible].any()
    assert certain.any() and moved.any()
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and moved.dtype == bool


def test_photometric_changes_keep_the_mask_and_the_order_of_levels():
    image = _coordinates()
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[3, 4] = True
    no_movement = AugmentOptions(flips=False, rotate90=False, rotation=0, scale=0, shift=0)
    changed, same = augment_pair(image, mask, np.random.default_rng(1), no_movement)
    assert np.array_equal(mask, same) and not np.array_equal(image, changed)
    assert (np.diff(changed[..., 0].astype(int), axis=0) >= 0).all()  # brighter stays brighter
    unchanged, _ = augment_pair(image, mask, np.random.default_rng(1), AugmentOptions(False, False, 0, 0, 0, 0, 0, 0))
    assert np.array_equal(unchanged, image)


def test_defect_in_the_corner_is_never_lost():
    image = _coordinates()
    rng = np.random.default_rng(0)
    strong = AugmentOptions(rotation=40, shift=0.6, scale=0.4, keep=0.5)
    for corner in [(0, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1)]:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[corner] = True
        for _ in range(30):
            assert augment_pair(image, mask, rng, strong)[1].any()
    empty = np.zeros((SIDE, SIDE), dtype=bool)
    assert not augment_pair(image, empty, rng, strong)[1].any()


def test_oblong_images_keep_their_shape_and_results_follow_the_seed():
    image, mask = _coordinates(60, 90), np.zeros((60, 90), dtype=bool)
    mask[20:30, 40:50] = True
    for seed in range(6):
        once = augment_pair(image, mask, np.random.default_rng(seed))
        again = augment_pair(image, mask, np.random.default_rng(seed))
        assert once[0].shape == (60, 90, 3) and once[1].shape == (60, 90)
        assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
    other = augment_pair(image, mask, np.random.default_rng(99))
    assert not np.array_equal(once[0], other[0])


def test_no_black_pixels_enter_at_the_border():
    image = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    strong = AugmentOptions(rotation=45, shift=0.3, scale=0.3, **GEOMETRY_ONLY)
    for seed in range(20):
        moved, _ = augment_pair(image, np.zeros((SIDE, SIDE), dtype=bool), np.random.default_rng(seed), strong)
        assert (moved == 200).all()
