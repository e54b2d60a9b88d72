"""Contact sheets: their size, what is drawn where, and that no defect vanishes."""

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
def test_the_size_follows_from_count_columns_and_cell(count, columns, cell):
    sheet = contact_sheet([GREY] * count, [None] * count, columns, cell)
    wide, high = max(1, min(count, columns)), max(1, -(-count // columns))
    assert sheet.dtype == np.uint8
    assert sheet.shape == (high * (cell + GAP) - GAP, wide * (cell + GAP) - GAP, 3)
    assert not _outlined(sheet).any()


def test_images_stand_in_reading_order_and_keep_their_shape():
    shades = [np.full((20, 40, 3), 10 * (i + 1), np.uint8) for i in range(4)]
    sheet = contact_sheet(shades, [None] * 4, columns=3, cell=16)
    pitch = 16 + GAP
    for index in range(4):
        top, left = index // 3 * pitch, index % 3 * pitch
        cell = sheet[top : top + 16, left : left + 16]
        assert (cell[4:12] == 10 * (index + 1)).all()  # twice as wide as high: half of the cell
        assert (cell[:4] == 255).all() and (cell[12:] == 255).all()
    assert (sheet[pitch:, pitch:] == 255).all()


def test_the_outline_surrounds_the_mask_and_leaves_it_visible():
    mask = np.zeros((48, 48), bool)
    mask[10:20, 30:40] = True
    image = GREY.copy()
    image[mask] = 7
    drawn = _outlined(sheet := contact_sheet([image], [mask], cell=48))
    assert not drawn[mask].any() and (sheet[mask] == 7).all()
    assert drawn[9, 30:40].all() and drawn[20, 30:40].all() and drawn[10:20, 29].all() and drawn[10:20, 40].all()
    assert drawn.sum() == 40


@given(y=st.integers(0, 1023), x=st.integers(0, 699), cell=st.sampled_from([16, 96, 200]))
@settings(max_examples=30, deadline=None)
def test_a_defect_of_one_pixel_in_a_large_image_still_shows(y, x, cell):
    mask = np.zeros((1024, 700), bool)
    mask[y, x] = True
    drawn = _outlined(contact_sheet([np.zeros((1024, 700, 3), np.uint8)], [mask], cell=cell))
    found = np.argwhere(drawn)
    # the image is as high as the cell and centred from left to right; sizes round to whole pixels
    place = np.array([y * cell / 1024, x * cell / 1024 + (cell - 700 * cell / 1024) / 2])
    assert len(found) and np.abs(found - place).max() < 3


@pytest.mark.parametrize("size", [16, 48, 96])
def test_a_mask_over_the_whole_image_is_outlined_at_the_border_and_an_empty_one_not_at_all(size):
    full = _outlined(contact_sheet([GREY], [np.ones((48, 48), bool)], cell=size))
    assert full[0].all() and full[-1].all() and full[:, 0].all() and not full[1:-1, 1:-1].any()
    assert not _outlined(contact_sheet([GREY], [np.zeros((48, 48), bool)], cell=size)).any()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="one mask per image"):
        contact_sheet([GREY], [])
    with pytest.raises(ValueError, match="expected a mask of"):
        contact_sheet([GREY], [np.zeros((8, 8), bool)])
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([GREY], [None], columns=0)
