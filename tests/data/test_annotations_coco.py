"""COCO: the pixels that its annotations mean, and what of a COCO file is refused."""

import unicodedata

import cv2
import numpy as np
import pytest
from annotated_plates import CENTERS, CORNERS, HEIGHT, LEFT, SIZE, TOP, WIDTH, coco, flat, save_plate, spot, write
from rle_encoding import compress_counts, mask_to_rle

from defect_core.data.annotations import read_annotations
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError

POLYGON = {"segmentation": [flat(CORNERS)], "bbox": [LEFT, TOP, WIDTH, HEIGHT]}


def masks_of(root, name="a.png", **options):
    index = read_annotations(root, options)
    return index.for_image(root / name).masks(*SIZE)


def problems_of(root, **options):
    log = ProblemLog()
    read_annotations(root, options, log)
    return log.problems


@pytest.fixture
def root(tmp_path):
    save_plate(tmp_path / "a.png")
    return tmp_path


def test_polygon_covers_its_box_and_no_more(root):
    write(root / "coco.json", coco(POLYGON))
    masks = masks_of(root)
    assert list(masks) == ["scratch"]
    assert np.array_equal(masks["scratch"], spot())


def test_contour_points_with_bounding_rect_are_pixel_centers(root):
    contours, _ = cv2.findContours(spot().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    box = list(cv2.boundingRect(contours[0]))
    write(root / "coco.json", coco({"segmentation": [contours[0].ravel().tolist()], "bbox": box}))
    assert np.array_equal(masks_of(root)["scratch"], spot())
    assert "pixel indices" in read_annotations(root).notes[0]


def test_option_chooses_the_origin_of_coordinates(root):
    write(root / "coco.json", coco({"segmentation": [flat(CENTERS)]}))
    assert np.array_equal(masks_of(root, polygon_coordinates="pixel_centers")["scratch"], spot())
    assert masks_of(root)["scratch"].sum() == (WIDTH - 1) * (HEIGHT - 1)


def test_plain_run_lengths_of_a_crowd(root):
    runs = {"size": list(SIZE), "counts": mask_to_rle(spot())}
    write(root / "coco.json", coco({"segmentation": runs, "iscrowd": 1}))
    assert np.array_equal(masks_of(root)["scratch"], spot())


def test_compressed_run_lengths_keep_a_hole(root):
    ring = spot()
    ring[TOP + 4 : TOP + 6, LEFT + 3 : LEFT + 5] = False
    counts = compress_counts(mask_to_rle(ring))
    write(root / "coco.json", coco({"segmentation": {"size": list(SIZE), "counts": counts}}))
    assert np.array_equal(masks_of(root)["scratch"], ring)


def test_several_types_and_several_parts_in_one_image(root):
    other = [[40, 30], [50, 30], [50, 40], [40, 40]]
    write(root / "coco.json", coco({"segmentation": [flat(CORNERS), flat(other)]}, {**POLYGON, "category_id": 2}))
    masks = masks_of(root)
    assert {label: int(mask.sum()) for label, mask in masks.items()} == {"scratch": 96 + 100, "dent": 96}


def test_image_without_annotation_is_normal(root):
    save_plate(root / "b.png")
    write(root / "coco.json", coco(POLYGON, images=("a.png", "b.png")))
    index = read_annotations(root)
    assert index.normal_images == (root / "b.png",)
    assert index.for_image(root / "b.png") is None
    assert index.images == (root / "a.png",)


def test_folders_in_file_name_and_images_folder(tmp_path):
    for name in ("images/x/a.png", "images/y/a.png"):
        save_plate(tmp_path / name)
    write(tmp_path / "annotations/coco.json", coco(POLYGON, images=("y/a.png",)))
    assert read_annotations(tmp_path).images == (tmp_path / "images/y/a.png",)


def test_windows_path_of_another_machine_is_found_by_its_name(tmp_path):
    save_plate(tmp_path / "day/x/a.png")
    save_plate(tmp_path / "day/y/a.png")
    write(tmp_path / "coco.json", coco(POLYGON, images=(r"C:\data\x\a.png",)))
    assert read_annotations(tmp_path).images == (tmp_path / "day/x/a.png",)


def test_ambiguous_name_lists_the_candidates(tmp_path):
    for name in ("x/a.png", "y/a.png"):
        save_plate(tmp_path / name)
    write(tmp_path / "coco.json", coco(POLYGON))
    (line,) = problems_of(tmp_path)
    assert "'x/a.png', 'y/a.png'" in line and "images[0].file_name" in line


def test_names_are_compared_in_nfc(tmp_path):
    name = "Gehäuse.png"
    path = save_plate(tmp_path / unicodedata.normalize("NFD", name))
    write(tmp_path / "coco.json", coco(POLYGON, images=(unicodedata.normalize("NFC", name),)))
    index = read_annotations(tmp_path)
    assert index.images == (path,)
    assert index.for_image(tmp_path / unicodedata.normalize("NFC", name)) is not None


def test_missing_image_is_a_problem_or_left_out(root):
    write(root / "coco.json", coco(POLYGON, images=("a.png", "gone.png")))
    (line,) = problems_of(root)
    assert "'gone.png'" in line and "missing_images: leave_out" in line
    index = read_annotations(root, {"missing_images": "leave_out"})
    assert any("not in the source" in note for note in index.notes)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "..\\secret.png"])
def test_path_outside_the_source_is_refused(tmp_path, name):
    save_plate(tmp_path / "secret.png")
    save_plate(tmp_path / "source/a.png")
    write(tmp_path / "source/coco.json", coco(images=(name,)))
    (line,) = problems_of(tmp_path / "source")
    assert "outside the source" in line


def test_box_only_is_refused_or_a_rectangle_or_left_out(root):
    write(root / "coco.json", coco({"bbox": [LEFT, TOP, WIDTH, HEIGHT], "segmentation": []}))
    (line,) = problems_of(root)
    assert "annotations[0]" in line and "boxes: rectangles" in line
    assert np.array_equal(masks_of(root, boxes="rectangles")["scratch"], spot())
    index = read_annotations(root, {"boxes": "leave_out"})
    assert index.normal_images == ()
    assert index.for_image(root / "a.png").masks(*SIZE) == {}


def test_polygon_beyond_the_border_is_clipped_and_counted(root):
    outline = [[-10, -10], [5, -10], [5, 5], [-10, 5]]
    write(root / "coco.json", coco({"segmentation": [flat(outline)]}))
    index = read_annotations(root)
    assert index.for_image(root / "a.png").masks(*SIZE)["scratch"].sum() == 25
    assert "clipped: 1 (the first: coco.json: annotations[0]" in index.notes[0]
    assert not index.unusable


def test_polygon_without_area_is_noted_and_its_image_is_not_normal(root):
    write(root / "coco.json", coco({"segmentation": [[1, 1, 9, 1, 4, 1]]}))
    index = read_annotations(root)
    assert index.normal_images == ()
    assert "without an area" in index.notes[0] and "annotations[0].segmentation[0]" in index.notes[0]


def test_image_of_another_size_is_refused(root):
    write(root / "coco.json", coco(POLYGON))
    shapes = read_annotations(root).for_image(root / "a.png")
    with pytest.raises(
        InputError, match=r"64x48 pixels, but the image has 48x64 \(the annotation is of the image before"
    ):
        shapes.masks(SIZE[1], SIZE[0])


def test_ignored_label_leaves_a_normal_image(root):
    write(root / "coco.json", coco(POLYGON))
    index = read_annotations(root, {"ignore_labels": ["scratch"]})
    assert index.normal_images == (root / "a.png",)


def test_all_problems_at_once_one_line_each(root):
    write(
        root / "coco.json",
        coco(
            {"segmentation": [[1, 2, "x", 4, 5, 6]]},
            {"segmentation": [[1, 2, 3, 4, 5]]},
            {"segmentation": {"size": list(SIZE), "counts": [5, 5]}},
            {"segmentation": {"size": [10, 10], "counts": [100]}},
            {"segmentation": {"size": list(SIZE), "counts": "\x01"}},
            {"category_id": 9},
            {"image_id": [1]},
            {"segmentation": "mask.png"},
            {},
        ),
    )
    lines = problems_of(root)
    assert len(lines) == 9
    assert all(line.startswith(str(root / "coco.json")) and f"annotations[{i}]" in line for i, line in enumerate(lines))
    with pytest.raises(InputError):
        read_annotations(root)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(root, number):
    content = '{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "x"}], "annotations": '
    content += f'[{{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, {number}, 1, 5, 5]]}}]}}'
    write(root / "coco.json", content)
    (line,) = problems_of(root)
    assert "finite" in line


@pytest.mark.parametrize("content", ["{", "[" * 200_000, '{"a": ' + "9" * 5000 + "}", "\xff\xfe"])
def test_broken_json_is_one_line(root, content):
    (root / "coco.json").write_bytes(content.encode("latin-1"))
    (line,) = problems_of(root)
    assert str(root / "coco.json") in line and "\n" not in line


def test_large_file_is_refused_with_the_limit(root):
    write(root / "coco.json", '{"images": [' + " " * (1 << 20) + '], "annotations": []}')
    (line,) = problems_of(root, max_megabytes=1)
    assert "larger than 1 MB" in line


def test_many_similar_problems_are_counted(root):
    write(root / "coco.json", coco(*[{"category_id": 7}] * 500))
    lines = problems_of(root)
    assert len(lines) == 21
    assert "480 more problems of this kind" in lines[-1]


def test_several_files_are_united(root):
    write(root / "one.json", coco(POLYGON))
    write(root / "two.json", coco({**POLYGON, "category_id": 2}))
    index = read_annotations(root)
    assert set(index.for_image(root / "a.png").masks(*SIZE)) == {"scratch", "dent"}
    assert len(index.files) == 2
    assert set(masks_of(root, file="two.json")) == {"dent"}


def test_unknown_option_names_the_known_ones(root):
    (line,) = problems_of(root, colour="red")
    assert "annotations.colour" in line and "polygon_coordinates" in line


def test_source_without_annotations_gives_none(root):
    write(root / "package.json", {"name": "x"})
    assert read_annotations(root) is None
