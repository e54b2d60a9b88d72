"""Contact sheets: their size, the position of images and outlines, and the visibility of small defects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.report.sheets import GAP, OUTLINE, contact_sheet

GREY = np.full((48, 48, 3), 120, np.uint8)


def _outlined(sheet):
    return (sheet == OUTLINE).all(-1)


@given(count=st.integers(0, 9), columns=st.integers(1, 5), cell=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_size_follows_from_count_columns_and_cell(count, columns, cell):
    sheet = contact_sheet([GREY] * count, [None] * count, columns, cell)
    wide, high = max(1, min(count, columns)), max(1, -(-count // columns))
    assert sheet.dtype == np.uint8
    assert sheet.shape == (high * (cell + GAP) - GAP, wide * (cell + GAP) - GAP, 3)
    assert not _outlined(sheet).any()


def test_images_are_in_reading_order_and_keep_their_aspect_ratio():
    shades = [np.full((20, 40, 3), 10 * (i + 1), np.uint8) for i in range(4)]
    sheet = contact_sheet(shades, [None] * 4, columns=3, cell=16)
    pitch = 16 + GAP
    for index in range(4):
        top, left = index // 3 * pitch, index % 3 * pitch
        cell = sheet[top : top + 16, left : left + 16]
        assert (cell[4:12] == 10 * (index + 1)).all()  # twice as wide as high: half of the cell
        assert (cell[:4] == 255).all() and (cell[12:] == 255).all()
    assert (sheet[pitch:, pitch:] == 255).all()


def test_outline_surrounds_the_mask_and_leaves_it_visible():
    mask = np.zeros((48, 48), bool)
    mask[10:20, 30:40] = True
    image = GREY.copy()
    image[mask] = 7
    outline = _outlined(sheet := contact_sheet([image], [mask], cell=48))
    assert not outline[mask].any() and (sheet[mask] == 7).all()
    assert (
        outline[9, 30:40].all() and outline[20, 30:40].all() and outline[10:20, 29].all() and outline[10:20, 40].all()
    )
    assert outline.sum() == 40


@given(y=st.integers(0, 1023), x=st.integers(0, 699), cell=st.sampled_from([16, 96, 200]))
@settings(max_examples=30, deadline=None)
def test_defect_of_one_pixel_in_a_large_image_is_visible(y, x, cell):
    mask = np.zeros((1024, 700), bool)
    mask[y, x] = True
    outline = _outlined(contact_sheet([np.zeros((1024, 700, 3), np.uint8)], [mask], cell=cell))
    pixels = np.argwhere(outline)
    # The image has the height of the cell and is centred horizontally; sizes round to whole pixels.
    expected = np.array([y * cell / 1024, x * cell / 1024 + (cell - 700 * cell / 1024) / 2])
    assert len(pixels) and np.abs(pixels - expected).max() < 3


@pytest.mark.parametrize("size", [16, 48, 96])
def test_full_mask_is_outlined_at_the_border_and_an_empty_mask_nowhere(size):
    full = _outlined(contact_sheet([GREY], [np.ones((48, 48), bool)], cell=size))
    assert full[0].all() and full[-1].all() and full[:, 0].all() and not full[1:-1, 1:-1].any()
    assert not _outlined(contact_sheet([GREY], [np.zeros((48, 48), bool)], cell=size)).any()


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="one mask per image"):
        contact_sheet([GREY], [])
    with pytest.raises(ValueError, match="expected a mask of"):
        contact_sheet([GREY], [np.zeros((8, 8), bool)])
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([GREY], [None], columns=0)
