"""Reader of COCO: polygons, run-length encoded masks (plain and compressed), crowds, several categories.

Polygons have pixel corners, as in pycocotools. They have pixel centres if the bounding boxes of the file say so: each
box is one pixel wider and higher than its polygon, as `cv2.boundingRect` gives it.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.rle import check_runs, decode_runs, decompress_counts
from defect_core.data.annotations.safe_parse import finite_number
from defect_core.data.annotations.shapes import PIXEL_CENTERS, PIXEL_CORNERS, Bitmap, Origin, Region

_VOTERS = 1000  # annotations whose boxes are compared with their polygons
_HINTS = ("images", "train", "val", "valid", "test", "data")


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO with images."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_coco(file: Path, content: Mapping[str, Any], collector: Collector) -> None:
    """Add the images of a COCO file; an image without an annotation is a normal image.

    Args:
        file: the file, for messages.
        content: its content.
        collector: receives the annotations and problems.
    """
    names = _category_names(file, content, collector)
    images: dict[Any, tuple[Path | None, tuple[int, int] | None]] = {}
    for index, entry in enumerate(content["images"]):
        where = f"{file}: images[{index}]"
        key = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(key, int | str) or "file_name" not in entry:
            collector.problem(where, "has no id or no file_name", "expected both")
            continue
        if key in images:
            collector.problem(f"{where}.id", f"{key!r} is used twice", "expected one id per image")
            continue
        image = collector.find(entry["file_name"], file, f"{where}.file_name", _HINTS)
        size = collector.size(entry.get("height"), entry.get("width"), where)
        images[key] = (image, size)
        if image is not None:
            collector.add(image, [], [file], size)
    shown = _polygon_origin(content["annotations"])
    origin = collector.origin(shown)
    if shown == PIXEL_CENTERS == origin:
        collector.note("files have polygons of pixel indices, as their bounding boxes show", str(file))
    for index, entry in enumerate(content["annotations"]):
        where = f"{file}: annotations[{index}]"
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(key, int | str) or key not in images:
            collector.problem(f"{where}.image_id", f"{key!r} is no id of an image", "expected an id in images")
            continue
        category = entry.get("category_id")
        if not isinstance(category, int | str) or category not in names:
            collector.problem(
                f"{where}.category_id", f"{category!r} is no id of a category", "expected an id in categories"
            )
            continue
        image, size = images[key]
        if image is None or collector.is_ignored(names[category]):
            continue
        label = collector.label(names[category], where)
        if label is not None:
            regions = _read_segmentation(entry, label, where, size, origin, collector)
            collector.add(image, regions, [file], size, has_annotation=True)


def _category_names(file: Path, content: Mapping[str, Any], collector: Collector) -> dict[Any, str]:
    names: dict[Any, str] = {}
    categories = content.get("categories")
    for index, entry in enumerate(categories if isinstance(categories, list) else []):
        key = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(key, int | str) or not isinstance(name, str) or not name.strip():
            collector.problem(f"{file}: categories[{index}]", "has no id or no name", "expected both")
        else:
            names[key] = name
    if content["annotations"] and not names:
        collector.problem(f"{file}: categories", "has no category", "expected an id and a name for each defect type")
    return names


def _read_segmentation(
    entry: Mapping[str, Any],
    label: str,
    where: str,
    size: tuple[int, int] | None,
    origin: Origin,
    collector: Collector,
) -> list[Region]:
    segmentation = entry.get("segmentation")
    if not segmentation:
        box = entry.get("bbox")
        numbers = [finite_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
        left, top, width, height = numbers if None not in numbers else (None, None, None, None)
        if left is None or top is None or width is None or height is None:
            collector.problem(
                f"{where}.segmentation", "is missing, and bbox is no box", "expected polygons or run lengths"
            )
            return []
        return collector.box(label, [left, top, left + width, top + height], where, size, PIXEL_CORNERS)
    where = f"{where}.segmentation"
    if isinstance(segmentation, dict):
        return _read_runs(segmentation, label, where, size, collector)
    if not isinstance(segmentation, list):
        collector.problem(where, f"is a {type(segmentation).__name__}", "expected polygons or run lengths")
        return []
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return [
        region
        for number, polygon in enumerate(polygons)
        for region in collector.polygon(label, polygon, f"{where}[{number}]", size, origin)
    ]


def _read_runs(
    runs: Mapping[str, Any], label: str, where: str, size: tuple[int, int] | None, collector: Collector
) -> list[Region]:
    counts, declared = runs.get("counts"), runs.get("size")
    if not isinstance(declared, list) or len(declared) != 2 or not isinstance(counts, str | list):
        collector.problem(where, "has no size or no counts", "expected size [height, width] and run lengths")
        return []
    shape = collector.size(declared[0], declared[1], f"{where}.size")
    if shape is None:
        return []
    if size is not None and shape != size:
        collector.problem(
            f"{where}.size", f"is {shape[1]}x{shape[0]} pixels, its image {size[1]}x{size[0]}", "expected the same"
        )
        return []
    try:
        lengths = check_runs(decompress_counts(counts) if isinstance(counts, str) else counts, *shape)
    except ValueError as error:
        collector.problem(f"{where}.counts", str(error), "export the annotations again")
        return []
    if not lengths[1::2].any():
        collector.note("masks without a pixel are left out", where)
        return []
    decode = partial(decode_runs, lengths, *shape, order="F")
    return [Bitmap(label, decode, where, whole_image=True)]


def _polygon_origin(annotations: list[Any]) -> Origin:
    """Return the convention that the bounding boxes of the polygons show."""
    votes = 0
    for entry in annotations[:: max(1, len(annotations) // _VOTERS)]:
        polygons, box = (entry.get("segmentation"), entry.get("bbox")) if isinstance(entry, dict) else (None, None)
        if not isinstance(polygons, list) or not polygons or not isinstance(box, list) or len(box) != 4:
            continue
        try:
            flat = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
            beyond = np.asarray(box[2:], np.float64) - (flat.max(axis=0) - flat.min(axis=0))
            if not np.isfinite(beyond).all():
                continue
        except (ValueError, TypeError, OverflowError):
            continue
        votes += 1 if np.abs(beyond - 1).max() < 0.01 else -1
    return PIXEL_CENTERS if votes > 0 else PIXEL_CORNERS
