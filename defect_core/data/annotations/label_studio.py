"""Reader of Label Studio's JSON export: polygons, rectangles, ellipses and brushes.

Coordinates are percent of the image, so they have pixel corners.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.finder import IMAGE_SUFFIXES, NotFoundError
from defect_core.data.annotations.rle import decode_brush
from defect_core.data.annotations.safe_parse import finite_number
from defect_core.data.annotations.shapes import PIXEL_CORNERS, Bitmap, Ellipse, Polygon, Region, rotated_box

_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file
_SHAPES = ("polygon", "rectangle", "ellipse", "brush")
_WITHOUT_AREA = ("keypoint", "vector")
_IMAGE_KEYS = ("image", "img", "picture", "photo", "file", "url")


def is_label_studio(content: Any) -> bool:
    """Return whether the content of a JSON file is an export of Label Studio."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    return isinstance(content[0].get("data"), dict) and not {"annotations", "completions"}.isdisjoint(content[0])


def read_label_studio(file: Path, content: list[Any], collector: Collector) -> None:
    """Add the images of the tasks; an annotation without a region says that the image is normal.

    Cancelled annotations and predictions are not read. Of several annotations of a task the newest is read.

    Args:
        file: the file, for messages.
        content: its content.
        collector: receives the annotations and problems.
    """
    for index, task in enumerate(content):
        where = f"{file}: [{index}]"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            collector.problem(where, "has no data", "expected a task of Label Studio")
            continue
        annotation = _newest(task, where, collector)
        if annotation is None:
            collector.note("tasks without an annotation are left out", where)
            continue
        image = _find_image(data, task, file, where, collector)
        results = annotation.get("result")
        if not isinstance(results, list):
            collector.problem(f"{where}.annotations", "has no result", "expected a list")
            continue
        if image is None:
            continue
        regions: list[Region] = []
        size, has_annotation = None, False
        for number, result in enumerate(results):
            place = f"{where}.result[{number}]"
            if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
                collector.problem(place, "has no value", "expected a region of Label Studio")
                continue
            kind = str(result.get("type") or "").removesuffix("labels")
            names = _names(result)
            if not names or kind in ("choices", "taxonomy", "textarea", "rating", "number"):
                continue
            names = [name for name in names if not collector.is_ignored(name)]
            has_annotation |= bool(names)
            for name in names:
                label = collector.label(name, f"{place}.value")
                shape = collector.size(result.get("original_height"), result.get("original_width"), place)
                if shape is None:
                    cure = "expected original_width and original_height"
                    collector.problem(place, "has no size of its image", cure)
                elif label is not None:
                    size = shape
                    regions += _read_region(result, label, place, shape, collector)
        collector.add(image, regions, [file], size, has_annotation)


def _newest(task: Mapping[str, Any], where: str, collector: Collector) -> Mapping[str, Any] | None:
    entries = task.get("annotations", task.get("completions"))
    usable = [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and not entry.get("was_cancelled")
    ]
    if len(usable) > 1:
        collector.note("tasks have several annotations, of which the newest is read", where)
    return max(usable, key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""), default=None)


def _find_image(
    data: Mapping[str, Any], task: Mapping[str, Any], file: Path, where: str, collector: Collector
) -> Path | None:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value.strip()}
    pictures = [value for value in texts.values() if Path(value.split("?")[0]).suffix.lower() in IMAGE_SUFFIXES]
    name = next((texts[key] for key in _IMAGE_KEYS if key in texts), None) or next(
        iter([*pictures, *texts.values()]), None
    )
    upload = task.get("file_upload")
    for candidate in (name, upload):
        if not isinstance(candidate, str):
            continue
        folder, _, last = candidate.rpartition("/")
        for variant in (candidate, f"{folder}/{_UPLOAD_PREFIX.sub('', last, count=1)}"):
            try:
                return collector.finder.find(variant, file.parent, ("images", "media"))
            except NotFoundError as error:
                if not error.is_missing and "outside" not in error.what:
                    collector.missing(f"{where}.data", error)
                    return None
    return collector.find(str(name or upload or ""), file, f"{where}.data")


def _names(result: Mapping[str, Any]) -> list[Any]:
    value = result["value"]
    own = value.get(str(result.get("type")))
    for names in (own, value.get("labels"), *(entry for key, entry in value.items() if key.endswith("labels"))):
        if isinstance(names, list) and names:
            return names
    return []


def _read_region(
    result: Mapping[str, Any], label: str, where: str, size: tuple[int, int], collector: Collector
) -> list[Region]:
    kind, value = str(result.get("type") or "").removesuffix("labels"), result["value"]
    if kind not in _SHAPES:  # a region of the tag Labels: its kind is seen by its keys
        keys = {"points": "polygon", "rle": "brush", "radiusX": "ellipse"}
        kind = next((name for key, name in keys.items() if key in value), "rectangle" if "height" in value else kind)
    if kind in _WITHOUT_AREA or kind not in _SHAPES:
        cure = "annotate its outline as a polygon, or name its label in annotations.ignore_labels"
        collector.problem(where, f"a region of type {kind!r} has no area", cure)
        return []
    if finite_number(result.get("image_rotation") or 0) != 0:
        collector.problem(where, "was annotated on a rotated image", "annotate the image as it is stored")
        return []
    origin, scale = collector.origin(PIXEL_CORNERS), np.array([size[1], size[0]]) / 100
    if kind == "brush":
        return _read_brush(value, label, where, size, collector)
    if kind == "polygon":
        points = collector.points(value.get("points"), f"{where}.value.points")
        return [] if points is None else collector.polygon(label, points * scale, where, size, origin)
    return _read_geometry(kind, value, label, where, size, collector)


def _read_geometry(
    kind: str, value: Mapping[str, Any], label: str, where: str, size: tuple[int, int], collector: Collector
) -> list[Region]:
    """Return a rectangle or an ellipse, in a list that is empty after a problem or a note."""
    origin, scale = collector.origin(PIXEL_CORNERS), np.array([size[1], size[0]]) / 100
    keys = ("x", "y", "width", "height") if kind == "rectangle" else ("x", "y", "radiusX", "radiusY")
    numbers = [finite_number(value.get(key)) for key in keys]
    turn = finite_number(value.get("rotation") or 0)
    if None in (*numbers, turn):
        collector.problem(f"{where}.value", f"has an unusable {', '.join(keys)} or rotation", "expected numbers")
        return []
    start = np.array([numbers[0] or 0.0, numbers[1] or 0.0]) * scale
    extent = np.array([numbers[2] or 0.0, numbers[3] or 0.0]) * scale
    if (extent <= 0).any():
        collector.note(f"{kind}s without an area are left out", where)
        return []
    if kind == "ellipse":
        collector.note_outside(np.stack([start - extent, start + extent]), where, size)
        return [Ellipse(label, (start[0], start[1]), (extent[0], extent[1]), turn or 0.0, origin)]
    if turn:
        outline = rotated_box((*start, *(start + extent)), turn, (start[0], start[1]))
        collector.note_outside(outline, where, size)
        return [Polygon(label, outline, origin)]
    return collector.box(label, np.stack([start, start + extent]), where, size, origin, is_outline=True)


def _read_brush(
    value: Mapping[str, Any], label: str, where: str, size: tuple[int, int], collector: Collector
) -> list[Region]:
    data = value.get("rle")
    try:
        content = np.asarray(data if isinstance(data, list) else [])
        if content.ndim != 1 or content.dtype.kind not in "iu" or content.min() < 0 or content.max() > 255:
            raise ValueError
        if int.from_bytes(content[:4].astype(np.uint8).tobytes(), "big") != 4 * size[0] * size[1]:
            raise ValueError
    except (ValueError, OverflowError):
        what = f"is no brush of an image of {size[1]}x{size[0]} pixels"
        collector.problem(f"{where}.value.rle", what, "export the annotations again")
        return []
    decode = partial(decode_brush, content.astype(np.uint8), *size)
    return [Bitmap(label, decode, f"{where}.value.rle", whole_image=True)]
