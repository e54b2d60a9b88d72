"""YOLO, Pascal VOC and label images of CVAT: the pixels that they mean, and what of them is refused."""

import os
import struct
import zlib

import numpy as np
import pytest
from annotated_plates import CORNERS, HEIGHT, LEFT, SIZE, TOP, WIDTH, save_mask, save_plate, spot, write
from PIL import Image

from defect_core.data.annotations import read_annotations
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError
from defect_core.export.shapes import mask_to_polygons

SCALE = np.array([SIZE[1], SIZE[0]])
NAMES = "path: .\ntrain: images\nval: images\nnames:\n  0: scratch\n  1: dent\n"


def problems_of(root, **options):
    log = ProblemLog()
    read_annotations(root, options, log)
    return log.problems


def masks_of(root, name="images/a.png", **options):
    return read_annotations(root, options).for_image(root / name).masks(*SIZE)


def line(points, number=0):
    return f"{number} " + " ".join(f"{value:.6f}" for value in (np.asarray(points) / SCALE).ravel()) + "\n"


@pytest.fixture
def yolo(tmp_path):
    save_plate(tmp_path / "images/a.png")
    write(tmp_path / "data.yaml", NAMES)
    return tmp_path


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_yolo_polygon_of_contour_points_gives_the_mask(yolo, offset):
    mask = spot()
    mask[TOP + HEIGHT, LEFT] = mask[40, 50] = True
    text = "".join(line(polygon + offset) for polygon in mask_to_polygons(mask))
    write(yolo / "labels/a.txt", text)
    assert np.array_equal(masks_of(yolo)["scratch"], mask)


def test_yolo_corner_coordinates_by_option(yolo):
    write(yolo / "labels/a.txt", line(CORNERS) + line(CORNERS, 1))
    masks = masks_of(yolo, polygon_coordinates="pixel_corners")
    assert list(masks) == ["scratch", "dent"]
    assert all(np.array_equal(mask, spot()) for mask in masks.values())


def test_yolo_boxes_are_refused_or_rectangles(yolo):
    center = (np.array(CORNERS[0]) + CORNERS[2]) / 2
    write(yolo / "labels/a.txt", line([center, [WIDTH, HEIGHT]]))
    (problem,) = problems_of(yolo)
    assert "labels/a.txt: line 1" in problem and "boxes: rectangles" in problem
    assert np.array_equal(masks_of(yolo, boxes="rectangles")["scratch"], spot())


def test_yolo_empty_and_missing_labels_are_normal_images(yolo):
    for name in ("b", "c"):
        save_plate(yolo / f"images/{name}.png")
    save_plate(yolo / "elsewhere/d.png")
    write(yolo / "labels/a.txt", line(CORNERS))
    write(yolo / "labels/b.txt", "\n")
    index = read_annotations(yolo)
    assert index.normal_images == (yolo / "images/b.png", yolo / "images/c.png")
    assert any("without a label file" in note for note in index.notes)


def test_yolo_splits_keep_images_of_the_same_name_apart(tmp_path):
    for split in ("train", "val"):
        save_plate(tmp_path / f"images/{split}/a.png")
    write(tmp_path / "data.yaml", "names: [scratch, dent]\n")
    write(tmp_path / "labels/train/a.txt", line(CORNERS))
    write(tmp_path / "labels/val/a.txt", line(CORNERS, 1))
    index = read_annotations(tmp_path)
    assert list(index.for_image(tmp_path / "images/val/a.png").masks(*SIZE)) == ["dent"]


def test_yolo_bad_lines_are_one_problem_each(yolo):
    write(yolo / "labels/a.txt", "7 0 0 1 0 1 1\nx 0 0 1 0 1 1\n0 0 0 1 0 1\n0 0 0 nan 0 1 1\n0 10 10 50 10 50 50\n0\n")
    problems = problems_of(yolo)
    assert len(problems) == 6
    assert all(f"line {number}:" in problem for number, problem in enumerate(problems, 1))


def test_yolo_labels_without_names_are_a_problem(tmp_path):
    save_plate(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", line(CORNERS))
    (problem,) = problems_of(tmp_path)
    assert "data.yaml" in problem
    write(tmp_path / "classes.txt", "scratch\n")
    assert list(masks_of(tmp_path)) == ["scratch"]


def test_yaml_with_aliases_is_never_expanded(yolo):
    write(yolo / "labels/a.txt", line(CORNERS))
    write(yolo / "data.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n")
    (problem,) = problems_of(yolo)
    assert "names of classes" in problem


def voc(*boxes, name="a.png", size=SIZE):
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in boxes
    )
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{name}</filename>{shape}{objects}</annotation>"


def test_voc_boxes_are_refused_or_count_from_one(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    save_plate(tmp_path / "JPEGImages/b.png")
    box = ("scratch", LEFT + 1, TOP + 1, LEFT + WIDTH, TOP + HEIGHT)
    write(tmp_path / "Annotations/a.xml", voc(box))
    write(tmp_path / "Annotations/b.xml", voc(name="b.png"))
    (problem,) = problems_of(tmp_path)
    assert "a.xml: <object> 1" in problem and "boxes" in problem
    index = read_annotations(tmp_path, {"boxes": "rectangles"})
    masks = index.for_image(tmp_path / "JPEGImages/a.png").masks(*SIZE)
    assert np.array_equal(masks["scratch"], spot())
    assert index.normal_images == (tmp_path / "JPEGImages/b.png",)


def test_voc_object_without_corners_is_a_problem(tmp_path):
    save_plate(tmp_path / "a.png")
    write(tmp_path / "a.xml", voc(("scratch", 1, 1, "wide", 5)))
    (problem,) = problems_of(tmp_path)
    assert "<bndbox>" in problem


def colors(*, palette):
    """Save red at the spot and green at a corner; as a palette image or RGB."""
    image = np.zeros((*SIZE, 3), np.uint8)
    image[spot()] = (128, 0, 0)
    image[:4, :4] = (0, 128, 0)
    picture = Image.fromarray(image)
    return picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8) if palette else picture


@pytest.mark.parametrize("palette", [False, True])
def test_label_image_colours_are_labels(tmp_path, palette):
    save_plate(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    colors(palette=palette).save(tmp_path / "SegmentationClass/a.png")
    write(
        tmp_path / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:128,0,0::\ndent:0,128,0::\n",
    )
    index = read_annotations(tmp_path)
    shapes = index.for_image(tmp_path / "JPEGImages/a.jpg")
    masks = shapes.masks(*SIZE)
    assert np.array_equal(masks["scratch"], spot())
    assert masks["dent"].sum() == 16 and list(masks) == ["dent", "scratch"]
    assert index.empty_mask_is_normal
    assert tmp_path / "SegmentationClass/a.png" in index.mask_files
    with pytest.raises(InputError, match="64x48 pixels, but the image has 60x40"):
        shapes.masks(40, 60)


def test_label_image_with_numbers_and_with_one_label(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    write(tmp_path / "labelmap.txt", "background:0,0,0::\nscratch:128,0,0::\ndent:0,128,0::\n")
    numbers = spot().astype(np.uint8) * 2
    save_mask(tmp_path / "SegmentationClass/a.png", numbers)
    assert np.array_equal(masks_of(tmp_path, "JPEGImages/a.png")["dent"], spot())
    write(tmp_path / "labelmap.txt", "background:0,0,0::\nscratch:128,0,0::\n")
    save_mask(tmp_path / "SegmentationClass/a.png", spot())
    assert np.array_equal(masks_of(tmp_path, "JPEGImages/a.png")["scratch"], spot())


def test_label_image_of_a_huge_size_is_refused_before_it_is_decoded(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    write(tmp_path / "labelmap.txt", "background:0,0,0::\nscratch:128,0,0::\n")
    header = (tmp_path / "JPEGImages/a.png").read_bytes()
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 2**30, 2**30, 1, 0, 0, 0, 0)
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass/a.png").write_bytes(bomb)
    with pytest.raises(InputError, match="1073741824x1073741824 pixels, but the image has 64x48"):
        masks_of(tmp_path, "JPEGImages/a.png")


def test_label_image_of_one_label_may_be_a_jpeg(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    write(tmp_path / "labelmap.txt", "background:0,0,0::\nscratch:128,0,0::\n")
    save_mask(tmp_path / "SegmentationClass/a.jpg", spot())
    assert np.array_equal(masks_of(tmp_path, "JPEGImages/a.png")["scratch"], spot())


def test_voc_file_name_without_suffix(tmp_path):
    for name in ("JPEGImages/a.jpg", "a.png"):
        save_plate(tmp_path / name)
    write(tmp_path / "Annotations/a.xml", voc(name="a"))
    assert read_annotations(tmp_path).normal_images == (tmp_path / "JPEGImages/a.jpg",)


def test_yolo_labels_beside_the_images(tmp_path):
    save_plate(tmp_path / "data/a.png")
    write(tmp_path / "obj.names", "scratch\n")
    write(tmp_path / "data/a.txt", line(CORNERS))
    assert read_annotations(tmp_path).images == (tmp_path / "data/a.png",)


def test_label_image_with_an_unknown_colour_is_refused(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    (tmp_path / "SegmentationClass").mkdir()
    colors(palette=False).save(tmp_path / "SegmentationClass/a.png")
    write(tmp_path / "labelmap.txt", "scratch:128,0,0::\ndent:0,0,128::\n")
    with pytest.raises(InputError, match="colour 0,128,0 without a label"):
        masks_of(tmp_path, "JPEGImages/a.png")


def test_label_image_without_a_label_map(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    save_mask(tmp_path / "SegmentationClass/a.png", spot())
    (problem,) = problems_of(tmp_path)
    assert "labelmap.txt" in problem and "label_colors" in problem
    assert list(masks_of(tmp_path, "JPEGImages/a.png", label_colors={"dent": "255,255,255"})) == ["dent"]
    write(tmp_path / "Annotations/a.xml", voc(("scratch", 1, 1, 5, 5)))
    assert np.array_equal(masks_of(tmp_path, "JPEGImages/a.png")["scratch"], spot())


def test_label_map_problems_name_the_line(tmp_path):
    save_plate(tmp_path / "JPEGImages/a.png")
    save_mask(tmp_path / "SegmentationClass/a.png", spot())
    write(tmp_path / "labelmap.txt", "background:0,0,0::\nscratch:red::\ndent:0,0,1::\nhole:0,0,1::\n")
    problems = problems_of(tmp_path)
    assert len(problems) == 2
    assert "line 2" in problems[0] and "line 4" in problems[1]


def test_fifo_and_loop_of_links_do_not_hang(yolo):
    write(yolo / "labels/a.txt", line(CORNERS))
    os.mkfifo(yolo / "export.json")
    (yolo / "images/loop").symlink_to(yolo)
    (yolo / "gone.xml").symlink_to(yolo / "nothing")
    index = read_annotations(yolo)
    assert index.images == (yolo / "images/a.png",)


def test_yolo_polygon_of_one_point_is_one_pixel(yolo):
    write(yolo / "labels/a.txt", line([[3.5, 4.5]] * 3))
    mask = masks_of(yolo)["scratch"]
    assert mask.sum() == 1 and mask[4, 3]
