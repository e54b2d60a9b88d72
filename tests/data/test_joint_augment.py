"""Image and mask move together, and the defect stays."""

import numpy as np
import pytest

from defect_core.data.augment import AugmentOptions, augment, random_crop_with_defect

GEOMETRY_ONLY = {"brightness": 0.0, "contrast": 0.0, "colour": 0.0}
SIDE = 120


def _coordinates(height=SIDE, width=SIDE):
    """An image whose first two channels are row and column (doubled), so that any movement can be read off."""
    row, column = np.mgrid[:height, :width]
    return np.dstack([row * 2, column * 2, np.zeros_like(row)]).astype(np.uint8)


@pytest.mark.parametrize("seed", range(25))
def test_the_mask_goes_where_the_image_goes(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    top, left = rng.integers(30, 70, 2)
    mask[top : top + 20, left : left + 9] = True
    image, moved = augment(_coordinates(), mask, rng, AugmentOptions(**GEOMETRY_ONLY))
    row, column = image[..., 0] / 2, image[..., 1] / 2
    # a pixel of the result came from (row, column); it is set if and only if that one was, up to one pixel of rounding
    for_sure = (row >= top + 1) & (row <= top + 18) & (column >= left + 1) & (column <= left + 7)
    perhaps = (row >= top - 1) & (row <= top + 20) & (column >= left - 1) & (column <= left + 9)
    assert moved[for_sure].all() and not moved[~perhaps].any()
    assert for_sure.any() and moved.any()
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and moved.dtype == bool


def test_photometric_changes_leave_the_mask_and_the_order_alone():
    image = _coordinates()
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[3, 4] = True
    still = AugmentOptions(flips=False, rotate90=False, rotation=0, scale=0, shift=0)
    changed, same = augment(image, mask, np.random.default_rng(1), still)
    assert np.array_equal(mask, same) and not np.array_equal(image, changed)
    assert (np.diff(changed[..., 0].astype(int), axis=0) >= 0).all()  # brighter stays brighter
    unchanged, _ = augment(image, mask, np.random.default_rng(1), AugmentOptions(False, False, 0, 0, 0, 0, 0, 0))
    assert np.array_equal(unchanged, image)


def test_a_defect_in_the_corner_is_never_lost():
    image = _coordinates()
    rng = np.random.default_rng(0)
    wild = AugmentOptions(rotation=40, shift=0.6, scale=0.4, keep=0.5)
    for corner in [(0, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1)]:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[corner] = True
        for _ in range(30):
            assert augment(image, mask, rng, wild)[1].any()
    empty = np.zeros((SIDE, SIDE), dtype=bool)
    assert not augment(image, empty, rng, wild)[1].any()


def test_oblong_images_keep_their_shape_and_seeds_decide():
    image, mask = _coordinates(60, 90), np.zeros((60, 90), dtype=bool)
    mask[20:30, 40:50] = True
    for seed in range(6):
        once = augment(image, mask, np.random.default_rng(seed))
        again = augment(image, mask, np.random.default_rng(seed))
        assert once[0].shape == (60, 90, 3) and once[1].shape == (60, 90)
        assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
    other = augment(image, mask, np.random.default_rng(99))
    assert not np.array_equal(once[0], other[0])


def test_nothing_black_comes_in_over_the_border():
    image = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    wild = AugmentOptions(rotation=45, shift=0.3, scale=0.3, **GEOMETRY_ONLY)
    for seed in range(20):
        moved, _ = augment(image, np.zeros((SIDE, SIDE), dtype=bool), np.random.default_rng(seed), wild)
        assert (moved == 200).all()


def test_crops_hold_the_defect():
    rng = np.random.default_rng(0)
    image = _coordinates(80, 100)
    corners = set()
    for _ in range(60):
        mask = np.zeros((80, 100), dtype=bool)
        row, column = rng.integers(0, 80), rng.integers(0, 100)
        mask[row, column] = True
        part, part_mask = random_crop_with_defect(image, mask, (24, 32), rng)
        assert part.shape == (24, 32, 3) and part_mask.sum() == 1
        assert part[part_mask][0, :2].tolist() == [2 * row, 2 * column]
        corners.add((int(part[0, 0, 0]), int(part[0, 0, 1])))
    assert len(corners) > 20
    part, part_mask = random_crop_with_defect(image, np.zeros((80, 100), dtype=bool), 128, rng)
    assert part.shape == (128, 128, 3) and not part_mask.any()
