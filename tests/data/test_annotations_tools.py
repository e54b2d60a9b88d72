"""labelme, CVAT, Label Studio and CSV: the pixels that their annotations mean, and what of them is refused."""

import base64
import io

import numpy as np
import pytest
from annotated_plates import (
    CENTERS,
    CORNERS,
    HEIGHT,
    LEFT,
    SIZE,
    TOP,
    WIDTH,
    coco,
    flat,
    save_mask,
    save_plate,
    spot,
    write,
)
from PIL import Image
from rle_encoding import encode_runs
from test_annotations_shapes import encode_brush

from defect_core.data.annotations import read_annotations
from defect_core.data.layouts import ingest_source
from defect_core.data.problems import ProblemLog
from defect_core.data.records import load_mask, record_rows
from defect_core.errors import InputError, InputErrors


@pytest.fixture
def root(tmp_path):
    save_plate(tmp_path / "scratch/a.png")
    return tmp_path


def masks_of(root, **options):
    index = read_annotations(root, options)
    (path,) = index.images
    return index.for_image(path).masks(*SIZE)


def problems_of(root, **options):
    log = ProblemLog()
    read_annotations(root, options, log)
    return log.problems


def labelme(*shapes, name="a.png"):
    return {
        "version": "5.4.1",
        "shapes": list(shapes),
        "imagePath": name,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }


def shape(points, label="scratch", kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_labelme_polygon_and_rectangle_include_their_outline(root):
    write(root / "scratch/a.json", labelme(shape(CENTERS), shape([CENTERS[2], CENTERS[0]], "dent", "rectangle")))
    masks = masks_of(root)
    assert np.array_equal(masks["scratch"], spot())
    assert np.array_equal(masks["dent"], spot())


def test_labelme_circle(root):
    write(root / "scratch/a.json", labelme(shape([[30, 20], [30, 30]], kind="circle")))
    assert masks_of(root)["scratch"].sum() == pytest.approx(np.pi * 100, rel=0.03)


def test_labelme_mask_is_placed_at_its_points(root):
    part = np.ones((HEIGHT, WIDTH), bool)
    part[3:5, 2:4] = False
    stream = io.BytesIO()
    Image.fromarray(part).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    points = [[LEFT, TOP], [LEFT + WIDTH - 1, TOP + HEIGHT - 1]]
    write(root / "scratch/a.json", labelme(shape(points, kind="mask", mask=mask)))
    expected = spot()
    expected[TOP + 3 : TOP + 5, LEFT + 2 : LEFT + 4] = False
    assert np.array_equal(masks_of(root)["scratch"], expected)


def test_labelme_file_names_a_path_of_another_machine(root):
    write(root / "scratch/a.json", labelme(shape(CENTERS), name="..\\old\\renamed.png"))
    assert read_annotations(root).images == (root / "scratch/a.png",)


def test_labelme_files_in_a_folder_beside_the_images(tmp_path):
    save_plate(tmp_path / "images/a.png")
    write(tmp_path / "json/a.json", labelme(shape(CENTERS), name="../images/a.png"))
    assert read_annotations(tmp_path).images == (tmp_path / "images/a.png",)


def test_labelme_file_without_shapes_is_a_normal_image(root):
    write(root / "scratch/a.json", labelme())
    assert read_annotations(root).normal_images == (root / "scratch/a.png",)


def test_labelme_bad_shapes_are_one_problem_each(root):
    write(
        root / "scratch/a.json",
        labelme(
            shape([[1, 1], [9, 9]], kind="line"),
            shape([[1, 1]], kind="circle"),
            shape([[1, 1], [5, 5]], kind="mask", mask="no png"),
            shape([[1, 1], [5, 5]], kind="cube"),
            shape(CENTERS, label=""),
            shape([[1, 1, 1]]),
            shape({"x": 1}),
            "shape",
        ),
    )
    lines = problems_of(root)
    assert len(lines) == 8
    assert all(f"shapes[{index}]" in line for index, line in enumerate(lines))
    assert "ignore_labels" in lines[0]
    assert read_annotations(root, None, ProblemLog()).unusable == {root / "scratch/a.png"}


def cvat(body: str, name: str = "scratch/a.png") -> str:
    image = f'<image id="0" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{body}</image>'
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{image}</annotations>'


def points(outline) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)


def test_cvat_polygon_box_and_mask_have_the_same_pixels(root):
    runs = ", ".join(map(str, encode_runs(np.ones(HEIGHT * WIDTH, bool))))
    box = f'xtl="{LEFT}" ytl="{TOP}" xbr="{LEFT + WIDTH}" ybr="{TOP + HEIGHT}"'
    place = f'left="{LEFT}" top="{TOP}" width="{WIDTH}" height="{HEIGHT}"'
    body = f'<polygon label="one" points="{points(CORNERS)}"/><box label="two" {box}/>'
    write(root / "annotations.xml", cvat(f'{body}<mask label="three" rle="{runs}" {place}/>'))
    masks = masks_of(root)
    assert list(masks) == ["one", "two", "three"]
    assert all(np.array_equal(mask, spot()) for mask in masks.values())


def test_cvat_mask_runs_along_rows_with_a_hole(root):
    ring = np.ones((4, 5), bool)
    ring[1:3, 1:4] = False
    runs = ", ".join(map(str, encode_runs(ring.ravel())))
    write(root / "annotations.xml", cvat(f'<mask label="x" rle="{runs}" left="3" top="2" width="5" height="4"/>'))
    assert np.array_equal(masks_of(root)["x"][2:6, 3:8], ring)


def test_cvat_rotated_box_keeps_its_area(root):
    write(root / "annotations.xml", cvat('<box label="x" xtl="20" ytl="20" xbr="40" ybr="24" rotation="90"/>'))
    mask = masks_of(root)["x"]
    assert mask[12:32, 28:32].all() and mask.sum() == 80


def test_cvat_image_without_shapes_is_normal(root):
    write(root / "annotations.xml", cvat('<tag label="ok"/>'))
    assert read_annotations(root).normal_images == (root / "scratch/a.png",)


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://example.com/x.dtd">',
    ],
)
def test_xml_entities_are_never_read(root, declaration):
    text = cvat('<polygon label="&a;" points="1,1;2,2;3,1"/>')
    write(root / "annotations.xml", text.replace("<annotations>", f"{declaration}<annotations>"))
    (line,) = problems_of(root)
    assert "DOCTYPE" in line and "root:" not in line


@pytest.mark.parametrize("text", ["<a>" * 100_000, "<annotations>", "", "<annotations><image></annotations>", "\0"])
def test_broken_xml_is_one_line(root, text):
    write(root / "annotations.xml", text)
    (line,) = problems_of(root)
    assert line.startswith(f"{root / 'annotations.xml'}: ")


def test_cvat_bad_shapes_are_one_problem_each(root):
    body = (
        '<polygon label="x" points="1,1;2,nan;3,1"/><polygon label="x" points="1,1;b;3,1"/><polyline label="x"/>'
        '<box label="x" xtl="1"/><mask label="x" rle="5" left="0" top="0" width="2" height="2"/><polygon points="1,1"/>'
    )
    write(root / "annotations.xml", cvat(body))
    lines = problems_of(root)
    assert len(lines) == 6
    assert all(f"shape {number} <" in line for number, line in enumerate(lines, 1))


def test_cvat_video_is_refused(root):
    write(root / "annotations.xml", "<annotations><track id='0'/></annotations>")
    (line,) = problems_of(root)
    assert "CVAT for images" in line


def percent(outline):
    return [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in outline]


def task(*results, image="/data/upload/1/0a1b2c3d-a.png", **more):
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results), **more}]}


def region(kind, label="scratch", **value):
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    return {"type": kind, "value": {kind: [label], **value}, "image_rotation": 0, **size}


def test_label_studio_polygon_rectangle_and_brush_have_the_same_pixels(root):
    (x, y), (right, bottom) = percent([CORNERS[0], CORNERS[2]])
    write(
        root / "export.json",
        [
            task(
                region("polygonlabels", "one", points=percent(CORNERS)),
                region("rectanglelabels", "two", x=x, y=y, width=right - x, height=bottom - y, rotation=0),
                region("brushlabels", "three", format="rle", rle=encode_brush(spot())),
            )
        ],
    )
    masks = masks_of(root)
    assert list(masks) == ["one", "two", "three"]
    assert all(np.array_equal(mask, spot()) for mask in masks.values())


@pytest.mark.parametrize("image", ["/data/local-files/?d=x%2Fscratch%2Fa.png", "s3://bucket/scratch/a.png", "a.png"])
def test_label_studio_image_addresses(root, image):
    save_plate(root / "other/b.png")
    write(root / "export.json", [task(region("polygonlabels", points=percent(CORNERS)), image=image)])
    assert read_annotations(root).images == (root / "scratch/a.png",)


def test_label_studio_normal_cancelled_and_repeated_annotations(root):
    for name in "bcd":
        save_plate(root / f"{name}.png")
    old, new = region("polygonlabels", "old", points=percent(CORNERS)), region("polygonlabels", points=percent(CORNERS))
    twice = task(old, updated_at="2024-01-01", image="d.png")
    twice["annotations"].append({"result": [new], "updated_at": "2024-02-01"})
    cancelled = task(old, image="c.png", was_cancelled=True)
    write(root / "export.json", [task(image="b.png"), cancelled, twice])
    index = read_annotations(root)
    assert index.normal_images == (root / "b.png",)
    assert list(index.for_image(root / "d.png").masks(*SIZE)) == ["scratch"]
    assert index.for_image(root / "c.png") is None
    assert len(index.notes) == 2


def test_label_studio_bad_regions_are_one_problem_each(root):
    without_size = region("polygonlabels", points=percent(CORNERS))
    del without_size["original_width"]
    write(
        root / "export.json",
        [
            task(
                region("keypointlabels", x=1, y=1),
                region("brushlabels", rle=[1, 2, 3]),
                region("rectanglelabels", x=1, y=1, width="wide", height=2),
                {**region("polygonlabels", points=percent(CORNERS)), "image_rotation": 90},
                without_size,
                {"type": "polygonlabels"},
            )
        ],
    )
    lines = problems_of(root)
    assert len(lines) == 6
    assert all(f"result[{index}]" in line for index, line in enumerate(lines))


def test_csv_polygons_in_several_notations(root):
    rows = {
        "one": " ".join(map(str, flat(CENTERS))),
        "two": '"' + str(CENTERS) + '"',
        "three": '"' + ";".join(f"{x},{y}" for x, y in CENTERS) + '"',
        "four": '"' + str([CENTERS, CENTERS]) + '"',
    }
    lines = [f"scratch/a.png,{label},{text}" for label, text in rows.items()]
    write(root / "labels.csv", "image,label,polygon\n" + "\n".join(lines))
    masks = masks_of(root)
    assert list(masks) == list(rows)
    assert all(np.array_equal(mask, spot()) for mask in masks.values())


def test_csv_mask_column_chosen_by_options_with_semicolons(root):
    save_mask(root / "m/a_m.png", spot())
    write(root / "t.csv", "Bild;Fehler;Maske\nscratch/a.png;Kratzer;m/a_m.png\n")
    names = {"image_column": "Bild", "label_column": "Fehler", "mask_column": "Maske"}
    masks = masks_of(root, **names)
    assert np.array_equal(masks["Kratzer"], spot())
    assert read_annotations(root, names).mask_files == (root / "m/a_m.png",)


def test_csv_normal_rows_and_run_lengths(root):
    save_plate(root / "good/g.png")
    write(root / "train.csv", "ImageId,ClassId,EncodedPixels\na.png,3,49 2\ng.png,,\n")
    index = read_annotations(root)
    assert index.normal_images == (root / "good/g.png",)
    mask = index.for_image(root / "scratch/a.png").masks(*SIZE)["3"]
    assert mask[:2, 1].all() and mask.sum() == 2


def test_csv_group_column_names_the_item_of_each_image(root):
    save_plate(root / "good/g.png")
    rows = "a.png,x,1 1 5 1 5 5,part 7\na.png,y,1 1 5 1 5 5,part 7\ng.png,,,part 8\n"
    write(root / "t.csv", f"image,label,polygon,part\n{rows}")
    index = read_annotations(root, {"group_column": "part"})
    assert index.group_for(root / "scratch/a.png") == "part 7"
    assert index.group_for(root / "good/g.png") == "part 8"
    write(root / "t.csv", f"image,label,polygon,part\n{rows}a.png,z,1 1 5 1 5 5,part 9\n")
    (line,) = problems_of(root, group_column="part")
    assert "row 5" in line and "'part 9'" in line


def test_csv_problems_name_row_and_column(root):
    write(
        root / "t.csv",
        "image,label,polygon,mask\na.png,scratch,1 2 x,\na.png,scratch,,\ngone.png,scratch,1 1 5 1 5 5,\n"
        "a.png,scratch,,gone_mask.png\na.png,scratch,1 1 5 1 5 nan,\n",
    )
    lines = problems_of(root)
    assert len(lines) == 5
    assert "column 'polygon'" in lines[0] and all(f"row {index}" in line for index, line in enumerate(lines, 2))


def test_csv_run_that_leaves_the_image_is_refused_when_it_is_read(root):
    write(root / "t.csv", "image,label,rle\na.png,x,3000 500\n")
    with pytest.raises(InputError, match=r"row 2, column 'rle': the cell .* leaves a mask of 3072 pixels"):
        masks_of(root)


def test_csv_without_needed_columns_is_no_annotation(root):
    write(root / "t.csv", "image,price\na.png,3\n")
    assert read_annotations(root) is None
    (line,) = problems_of(root, format="csv", file="t.csv")
    assert "image, price" in line and "image_column" in line


def test_two_formats_in_one_source_need_a_choice(root):
    write(root / "a/coco.json", coco({"segmentation": [flat(CORNERS)]}))
    write(root / "scratch/a.json", labelme(shape(CENTERS, "dent")))
    (line,) = problems_of(root)
    assert "labelme, coco" in line and "annotations.format" in line
    assert list(masks_of(root, format="labelme")) == ["dent"]
    assert list(masks_of(root, file="a")) == ["scratch"]


def test_format_that_is_not_there_is_a_problem(root):
    write(root / "scratch/a.json", labelme(shape(CENTERS)))
    (line,) = problems_of(root, format="yolo")
    assert "found labelme" in line


def test_ingest_names_each_problem_of_an_annotation_once(tmp_path):
    for index in range(3):
        save_plate(tmp_path / f"source/good/g{index}.png", 50 + index)
        save_plate(tmp_path / f"source/scratch/d{index}.png", 90 + index)
        write(tmp_path / f"source/scratch/d{index}.json", labelme(shape([[1, 1], ["x", 2]]), name=f"d{index}.png"))
    with pytest.raises(InputErrors) as caught:
        ingest_source(tmp_path / "source", "plate", tmp_path / "out")
    assert [line.split(": ")[0] for line in caught.value.problems if "d" in line and "points" in line] == [
        str(tmp_path / f"source/scratch/d{index}.json") for index in range(3)
    ]
    assert not any("mask is empty" in line for line in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_ingest_writes_one_mask_per_type_of_an_image(tmp_path):
    names = [f"scratch/d{index}.png" for index in range(3)]
    for index, name in enumerate(names):
        save_plate(tmp_path / f"source/good/g{index}.png", 50 + index)
        save_plate(tmp_path / "source" / name, 90 + index)
    content = coco(images=tuple(names), names=("划痕", "glue strip"))
    content["annotations"] = [
        {"image_id": image, "category_id": category, "segmentation": [flat(CORNERS)]}
        for image in (1, 2, 3)
        for category in (1, 2)
    ]
    write(tmp_path / "source/annotations.json", content)
    summary = ingest_source(tmp_path / "source", "plate", tmp_path / "out")
    assert sorted(summary["labels"].values()) == ["glue strip", "划痕"]
    assert set(summary["defects"].values()) == {3}
    masks = [record.mask for record in record_rows(tmp_path / "out/records.parquet") if record.mask]
    assert len(masks) == 6
    assert all(np.array_equal(load_mask(tmp_path / "out" / mask), spot()) for mask in masks)
