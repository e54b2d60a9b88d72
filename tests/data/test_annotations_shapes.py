"""Pixels of polygons, ellipses and run lengths: round trips, and the limits of the decoders."""

import pickle
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rle_encoding import compress_counts, encode_runs

from defect_core.data.annotations import PIXEL_CENTERS, PIXEL_CORNERS, Shapes, fill_polygon
from defect_core.data.annotations.rle import (
    decode_brush,
    decode_runs,
    decode_start_lengths,
    decompress_counts,
)
from defect_core.data.annotations.shapes import Bitmap, Ellipse, Polygon, Rectangle
from defect_core.errors import InputError

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


@settings(deadline=None)
@given(MASKS)
def test_run_lengths_round_trip_in_both_orders(mask):
    for order in ("C", "F"):
        counts = encode_runs(mask.ravel(order=order))
        assert np.array_equal(decode_runs(counts, *mask.shape, order=order), mask)


@given(st.lists(st.integers(0, 1 << 20), max_size=30))
def test_compressed_counts_round_trip(counts):
    assert decompress_counts(compress_counts(counts)) == counts


@given(st.text(max_size=40))
def test_compressed_counts_of_any_text_end_in_numbers_or_a_value_error(text):
    with suppress(ValueError):
        assert all(isinstance(count, int) for count in decompress_counts(text))


@settings(deadline=None)
@given(MASKS)
def test_contours_of_a_mask_without_holes_give_the_mask_again(mask):
    filled = mask.astype(np.uint8)
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    again = np.zeros(mask.shape, bool)
    for contour in contours:
        fill_polygon(again, contour.reshape(-1, 2).astype(float), PIXEL_CENTERS)
    assert np.array_equal(again, filled.astype(bool))


@settings(deadline=None)
@given(*[st.integers(-5, 30)] * 4)
def test_rectangular_polygon_with_pixel_corners_has_its_area(left, top, width, height):
    width, height = abs(width) + 1, abs(height) + 1
    points = np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], float)
    mask, expected = np.zeros((24, 28), bool), np.zeros((24, 28), bool)
    fill_polygon(mask, points, PIXEL_CORNERS)
    expected[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    assert np.array_equal(mask, expected)


def test_bridged_outline_keeps_its_hole():
    outer, inner = [[2, 2], [14, 2], [14, 14], [2, 14], [2, 2]], [[6, 6], [6, 10], [10, 10], [10, 6], [6, 6]]
    mask = np.zeros((20, 20), bool)
    fill_polygon(mask, np.array([*outer, *inner, [2, 2]], float), PIXEL_CORNERS)
    assert not mask[6:10, 6:10].any()
    assert mask.sum() == 144 - 16


def test_polygon_thinner_than_a_pixel_is_not_lost():
    mask = np.zeros((20, 20), bool)
    fill_polygon(mask, np.array([[2.1, 3.1], [16.1, 3.1], [16.1, 3.3], [2.1, 3.3]]), PIXEL_CORNERS)
    assert mask[3, 2:17].all()
    assert mask.sum() == 15


def test_huge_coordinates_are_clipped():
    for origin in (PIXEL_CENTERS, PIXEL_CORNERS):
        mask = np.zeros((20, 20), bool)
        fill_polygon(mask, np.array([[-1e15, -1e15], [1e15, -1e15], [1e15, 1e15], [-1e15, 1e15]]), origin)
        assert mask.all()


def test_circle_has_its_area_and_is_clipped():
    mask = np.zeros((100, 100), bool)
    Ellipse("x", (50, 50), (30, 30)).add_to(mask)
    assert mask.sum() == pytest.approx(np.pi * 900, rel=0.01)
    mask[:] = False
    Ellipse("x", (0, 0), (30, 30)).add_to(mask)
    assert mask.sum() == pytest.approx(np.pi * 900 / 4, rel=0.06)


def test_ellipse_turns_clockwise():
    mask = np.zeros((60, 60), bool)
    Ellipse("x", (30, 30), (25, 5), 45).add_to(mask)
    assert mask[45, 45] and mask[15, 15]
    assert not mask[45, 15]


def test_thin_rectangle_has_a_pixel():
    mask = np.zeros((10, 10), bool)
    Rectangle("x", (3.1, 4.1, 3.2, 8.0), PIXEL_CORNERS).add_to(mask)
    assert mask[4:8, 3].all() and mask.sum() == 4


def test_bitmap_is_placed_and_clipped():
    mask = np.zeros((10, 10), bool)
    Bitmap("x", partial(decode_runs, [0, 16], 4, 4), "file", left=-2, top=8).add_to(mask)
    assert mask[8:, :2].all() and mask.sum() == 4
    Bitmap("x", partial(decode_runs, [0, 16], 4, 4), "file", left=-20, top=30).add_to(mask)
    assert mask.sum() == 4


def test_shapes_unite_labels_leave_out_empty_ones_and_can_be_pickled():
    points = np.array([[1, 1], [3, 1], [3, 3], [1, 3]], float)
    regions = (Polygon("a", points), Polygon("a", points + 4), Polygon("b", points + 50))
    shapes = pickle.loads(pickle.dumps(Shapes(regions, (Path("x.json"),))))
    masks = shapes.masks(10, 10)
    assert {label: int(mask.sum()) for label, mask in masks.items()} == {"a": 18}
    assert shapes.paths == (Path("x.json"),)


def test_bitmap_of_another_size_is_refused():
    bitmap = Bitmap("x", partial(decode_runs, [16], 4, 4), "file: field", whole_image=True)
    with pytest.raises(InputError, match="file: field: is of an image of 4x4 pixels, but the image has 6x5"):
        bitmap.add_to(np.zeros((5, 6), bool))


@pytest.mark.parametrize("counts", [[-1, 17], [8, 9], [16, 1 << 70], [1.5, 14.5], [[16]], "16"])
def test_wrong_run_lengths_are_refused(counts):
    with pytest.raises(ValueError, match=r"run"):
        decode_runs(counts, 4, 4)


def test_run_lengths_of_a_huge_mask_are_refused_before_they_are_decoded():
    with pytest.raises(ValueError, match="1000000x1000000 pixels"):
        decode_runs([10**12], 10**6, 10**6)


def test_start_lengths_count_from_one_down_the_columns():
    mask = decode_start_lengths("1 2 5 1", 3, 2)
    assert mask.tolist() == [[True, False], [True, True], [False, False]]
    with pytest.raises(ValueError, match="leaves a mask of 6 pixels"):
        decode_start_lengths("6 2", 3, 2)
    with pytest.raises(ValueError, match="pairs"):
        decode_start_lengths("6", 3, 2)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a brush as Label Studio: blocks of equal values, and blocks of single ones."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    sizes = (3, 4, 8, 16)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    position = 0
    while position < values.size:
        run = 1
        while position + run < values.size and run < 60000 and values[position + run] == values[position]:
            run += 1
        which = next(index for index, size in enumerate(sizes) if run - 1 < 1 << size)
        if run > 4 or position % 3:
            bits += f"1{which:02b}{run - 1:0{sizes[which]}b}{values[position]:08b}"
        else:
            bits += f"0{which:02b}{run - 1:0{sizes[which]}b}" + f"{values[position]:08b}" * run
        position += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@settings(deadline=None)
@given(MASKS)
def test_brush_round_trip(mask):
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)


def test_cut_off_brush_is_refused():
    data = encode_brush(np.eye(20, dtype=bool))
    with pytest.raises(ValueError, match="ends before the last pixel"):
        decode_brush(data[:-3], 20, 20)
    with pytest.raises(ValueError, match="has 1600 values, but an image of 21x20"):
        decode_brush(data, 20, 21)
