"""Reader of CVAT XML 1.1 "for images": polygons, rectangles, ellipses and masks.

Coordinates have pixel corners.
"""

from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.rle import check_runs, decode_runs, parse_integers
from defect_core.data.annotations.safe_parse import finite_number
from defect_core.data.annotations.shapes import PIXEL_CORNERS, Bitmap, Ellipse, Polygon, Region, rotated_box

_SHAPES = ("polygon", "box", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")
_HINTS = ("images",)


def read_cvat(file: Path, root: Element, collector: Collector) -> None:
    """Add the images of a CVAT file; an `<image>` without shapes is a normal image.

    Args:
        file: the file, for messages.
        root: its root element, `<annotations>`.
        collector: receives the annotations and problems.
    """
    if root.find("track") is not None:
        collector.problem(f"{file}: <track>", "is an annotation of a video", "export it as 'CVAT for images 1.1'")
        return
    for index, element in enumerate(root.iter("image"), 1):
        where = f"{file}: <image> {index}"
        image = collector.find(element.get("name"), file, f"{where}, name", _HINTS)
        if image is None:
            continue
        size = collector.size(element.get("height"), element.get("width"), f"{where}, width, height")
        regions: list[Region] = []
        has_annotation = False
        for number, shape in enumerate((child for child in element if child.tag in _SHAPES), 1):
            place = f"{where}, shape {number} <{shape.tag}>"
            if collector.is_ignored(shape.get("label")):
                continue
            has_annotation = True
            label = collector.label(shape.get("label"), f"{place}, label")
            if label is not None:
                regions += _read_shape(shape, label, place, size, collector)
        collector.add(image, regions, [file], size, has_annotation)


def _read_shape(
    shape: Element, label: str, where: str, size: tuple[int, int] | None, collector: Collector
) -> list[Region]:
    origin = collector.origin(PIXEL_CORNERS)
    if shape.tag == "polygon":
        raw = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair.strip()]
        return collector.polygon(label, raw, f"{where}, points", size, origin)
    if shape.tag == "mask":
        return _read_mask(shape, label, where, collector)
    if shape.tag in ("box", "ellipse"):
        keys = ("xtl", "ytl", "xbr", "ybr") if shape.tag == "box" else ("cx", "cy", "rx", "ry")
        numbers = [finite_number(shape.get(key)) for key in keys]
        turn = finite_number(shape.get("rotation", "0"))
        if None in (*numbers, turn):
            collector.problem(where, f"has an unusable {', '.join(keys)} or rotation", "expected finite numbers")
            return []
        a, b, c, d = (number or 0.0 for number in numbers)
        if shape.tag == "box":
            if turn:
                collector.note_outside(
                    corners := rotated_box((a, b, c, d), turn, ((a + c) / 2, (b + d) / 2)), where, size
                )
                return [Polygon(label, corners, origin)]
            return collector.box(label, [a, b, c, d], where, size, origin, is_outline=True)
        if c <= 0 or d <= 0:
            collector.note("ellipses without an area are left out", where)
            return []
        reach = max(c, d) if turn else np.array([c, d])
        center = np.array([a, b])
        collector.note_outside(np.stack([center - reach, center + reach]), where, size)
        return [Ellipse(label, (a, b), (c, d), turn or 0.0, origin)]
    cure = "annotate its outline as a polygon, or name its label in annotations.ignore_labels"
    collector.problem(where, f"a {shape.tag} has no area", cure)
    return []


def _read_mask(shape: Element, label: str, where: str, collector: Collector) -> list[Region]:
    numbers = [finite_number(shape.get(key)) for key in ("left", "top", "width", "height")]
    if any(number is None or number != int(number) or abs(number) > 1e6 for number in numbers):
        collector.problem(where, "has an unusable left, top, width or height", "expected integers")
        return []
    left, top, width, height = (int(number or 0) for number in numbers)
    try:
        lengths = check_runs(parse_integers(shape.get("rle") or ""), height, width)
    except ValueError as error:
        collector.problem(f"{where}, rle", str(error), "export the annotations again")
        return []
    if not lengths[1::2].any():
        collector.note("masks without a pixel are left out", where)
        return []
    return [Bitmap(label, partial(decode_runs, lengths, height, width), f"{where}, rle", left, top)]
