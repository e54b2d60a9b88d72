"""Reader of labelme: one JSON file per image, with polygons, rectangles, circles and masks.

Points are pixel centres, as labelme itself rasterises them.
"""

import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.finder import NotFoundError
from defect_core.data.annotations.shapes import PIXEL_CENTERS, Bitmap, Ellipse, Region

_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is of labelme."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(file: Path, content: Mapping[str, Any], collector: Collector) -> None:
    """Add the image of a labelme file; a file without shapes says that the image is normal.

    The image is the one that `imagePath` names, else the one beside the file with the same stem.

    Args:
        file: the file.
        content: its content.
        collector: receives the annotations and problems.
    """
    image = _find_image(content["imagePath"], file, collector)
    if image is None:
        return
    size = collector.size(content.get("imageHeight"), content.get("imageWidth"), f"{file}: imageHeight, imageWidth")
    regions: list[Region] = []
    has_annotation = False
    for index, shape in enumerate(content["shapes"]):
        where = f"{file}: shapes[{index}]"
        if not isinstance(shape, dict):
            collector.problem(where, "is no shape", "expected label, points and shape_type")
            continue
        if collector.is_ignored(shape.get("label")):
            continue
        has_annotation = True
        label = collector.label(shape.get("label"), f"{where}.label")
        if label is not None:
            regions += _read_shape(shape, label, where, size, collector)
    collector.add(image, regions, [file], size, has_annotation)


def _find_image(name: Any, file: Path, collector: Collector) -> Path | None:
    where = f"{file}: imagePath"
    if not isinstance(name, str) or not name.strip():
        return collector.find(name, file, where)
    try:
        return collector.finder.find(name, file.parent)
    except NotFoundError as error:
        with suppress(NotFoundError):
            beside = collector.finder.find_stem(file.stem, [collector.finder.relative(file).parent])
            if beside.parent == file.parent:
                return beside
        collector.missing(where, error)
        return None


def _read_shape(
    shape: Mapping[str, Any], label: str, where: str, size: tuple[int, int] | None, collector: Collector
) -> list[Region]:
    kind, raw = shape.get("shape_type") or "polygon", shape.get("points")
    origin = collector.origin(PIXEL_CENTERS)
    if kind == "polygon":
        return collector.polygon(label, raw, f"{where}.points", size, origin)
    if kind == "rectangle":
        return collector.box(label, raw, f"{where}.points", size, origin, is_outline=True)
    if kind in ("circle", "mask"):
        points = collector.points(raw, f"{where}.points")
        if points is None:
            return []
        if len(points) != 2:
            collector.problem(f"{where}.points", f"has {len(points)} points", f"expected two for a {kind}")
            return []
        if kind == "mask":
            return _read_mask(shape.get("mask"), points, label, where, collector)
        radius = float(np.hypot(*(points[1] - points[0])))
        if radius == 0:
            collector.note("circles without an area are left out", where)
            return []
        collector.note_outside(np.stack([points[0] - radius, points[0] + radius]), where, size)
        return [Ellipse(label, (points[0, 0], points[0, 1]), (radius, radius), origin=origin)]
    if kind in _WITHOUT_AREA:
        cure = "annotate its outline as a polygon, or name its label in annotations.ignore_labels"
        collector.problem(f"{where}.shape_type", f"a {kind} has no area", cure)
    else:
        collector.problem(f"{where}.shape_type", f"{kind!r} is unknown", "expected polygon, rectangle, circle or mask")
    return []


def _read_mask(mask: Any, points: NDArray[np.float64], label: str, where: str, collector: Collector) -> list[Region]:
    field = f"{where}.mask"
    try:
        content = base64.b64decode(mask, validate=True) if isinstance(mask, str) else b""
        with Image.open(BytesIO(content)) as picture:
            width, height = picture.size
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        collector.problem(field, "is no PNG in base64", "save the file with labelme again")
        return []
    left, top = np.floor(points.min(axis=0)).astype(int).tolist()
    expected = (np.floor(points.max(axis=0)) - np.floor(points.min(axis=0)) + 1).astype(int).tolist()
    if [width, height] != expected:
        collector.problem(
            field, f"is {width}x{height} pixels, its points {expected[0]}x{expected[1]}", "expected the same size"
        )
        return []
    return [Bitmap(label, partial(_decode_png, content), field, left, top)]


def _decode_png(content: bytes) -> NDArray[np.bool_]:
    try:
        with Image.open(BytesIO(content)) as picture:
            return np.asarray(picture.convert("L") if picture.mode not in ("1", "L") else picture) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())})") from None
