"""Reader of CSV tables: one row per image or per defect, with a mask file, a polygon or run lengths.

Points are pixel centres. Run lengths are pairs `start length` down the columns, counted from 1, as in Severstal.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.finder import NotFoundError, normal_form
from defect_core.data.annotations.options import AnnotationOptions
from defect_core.data.annotations.rle import decode_start_lengths
from defect_core.data.annotations.safe_parse import read_text
from defect_core.data.annotations.shapes import PIXEL_CENTERS, MaskRegion, Region
from defect_core.data.mask_sources import MaskFile
from defect_core.errors import InputError

_COLUMNS = {
    "image": ("image", "image_path", "image_file", "filename", "file_name", "file", "path", "imageid", "image_id"),
    "label": ("label", "defect", "defect_type", "class", "class_name", "category", "type", "classid"),
    "mask": ("mask", "mask_path", "mask_file", "mask_filename"),
    "polygon": ("polygon", "points", "outline", "contour", "region_shape_attributes"),
    "rle": ("encodedpixels", "rle"),
    "group": (),
}
_NORMAL_LABELS = ("", "good", "ok", "normal", "none", "no", "0", "defect_free")
_EMPTY = ("", "nan", "none", "null", "-1", "[]")
_LARGEST_FIELD = 1 << 26
_DEFECT = "defect"


@dataclass(frozen=True)
class StartLengths:
    """A region of pairs `start length`, decoded at the size of the image.

    Attributes:
        label: of the defect type.
        text: the pairs.
        where: file and row, for the message.
    """

    label: str
    text: str
    where: str

    def add_to(self, mask: NDArray[np.bool_]) -> None:
        """Set the pixels of the runs.

        Raises:
            InputError: the text is no pairs, or a run leaves the image.
        """
        try:
            mask |= decode_start_lengths(self.text, *mask.shape)
        except ValueError as error:
            raise InputError(f"{self.where}: the cell {error}; export the table again") from None


def table_columns(header: Sequence[str], options: AnnotationOptions) -> dict[str, str] | None:
    """Return the column of each role (image, label, mask, polygon, rle, group); None if it is no table of annotations.

    Args:
        header: names of the columns.
        options: names of columns that differ from the usual ones.
    """
    by_name = {normal_form(name).strip().casefold(): name for name in header}
    columns = {}
    for role, usual in _COLUMNS.items():
        chosen = getattr(options, f"{role}_column", None)
        names = (normal_form(chosen).strip().casefold(),) if chosen else usual
        found = next((by_name[name] for name in names if name in by_name), None)
        if found is not None:
            columns[role] = found
    has_pixels = not {"mask", "polygon", "rle"}.isdisjoint(columns)
    return columns if "image" in columns and has_pixels else None


def read_header(file: Path, options: AnnotationOptions) -> tuple[list[str], str]:
    """Return the names of the columns of a CSV file, and its delimiter."""
    first = next(iter(read_text(file, options.max_megabytes).splitlines()), "")
    delimiter = options.delimiter or max(",;\t", key=first.count)
    return next(csv.reader([first], delimiter=delimiter), []), delimiter


def read_table(file: Path, collector: Collector) -> None:
    """Add the images of a CSV file.

    A row without mask, polygon and run lengths says that its image is normal, if it has no label or a label such as
    `good`.

    Args:
        file: the file.
        collector: receives the annotations and problems.
    """
    try:
        header, delimiter = read_header(file, collector.options)
        text = read_text(file, collector.options.max_megabytes)
    except InputError as error:
        collector.error(error)
        return
    columns = table_columns(header, collector.options)
    if columns is None:
        cure = "name them by annotations.image_column, label_column, and mask_column or polygon_column"
        collector.problem(file, f"has the columns {', '.join(header)[:200]}", cure)
        return
    if "label" not in columns:
        collector.note(f"tables have no column of labels, so their label is {_DEFECT!r}", str(file))
    limit = csv.field_size_limit(_LARGEST_FIELD)
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=delimiter), 2):
            _read_row(file, row, columns, f"{file}: row {number}", collector)
    except csv.Error as error:
        collector.problem(file, f"no valid CSV ({error})", "export the table again")
    finally:
        csv.field_size_limit(limit)


def _read_row(file: Path, row: Mapping[str, Any], columns: Mapping[str, str], where: str, collector: Collector) -> None:
    cells = {role: str(row.get(column) or "").strip() for role, column in columns.items()}
    image = collector.find(cells["image"], file, f"{where}, column {columns['image']!r}", ("images",))
    if image is None:
        return
    if cells.get("group"):
        collector.group(image, normal_form(cells["group"]), where)
    pixels = {role: cells[role] for role in ("mask", "polygon", "rle") if cells.get(role, "").lower() not in _EMPTY}
    name = cells.get("label", _DEFECT if pixels else "")
    if collector.is_ignored(name) or (not pixels and name.casefold() in _NORMAL_LABELS):
        collector.add(image, [], [file], has_annotation=False)
        return
    label = collector.label(name, f"{where}, column {columns.get('label', 'label')!r}")
    if label is None:
        return
    if not pixels:
        collector.problem(where, f"has the label {name!r} but no mask or outline", "add it, or label the image good")
        return
    regions: list[Region] = []
    if "rle" in pixels:
        regions.append(StartLengths(label, pixels["rle"], f"{where}, column {columns['rle']!r}"))
    if "polygon" in pixels:
        regions += _read_polygons(pixels["polygon"], label, f"{where}, column {columns['polygon']!r}", collector)
    if "mask" in pixels:
        try:
            path = collector.finder.find(pixels["mask"], file.parent, ("masks",), masks=True)
            regions.append(MaskRegion(label, MaskFile((path,), label)))
        except NotFoundError as error:
            collector.missing(f"{where}, column {columns['mask']!r}", error)
    collector.add(image, regions, [file], has_annotation=True)


def _read_polygons(text: str, label: str, where: str, collector: Collector) -> list[Region]:
    raw: Any
    try:
        raw = json.loads(text) if text[0] in "[{" else [float(part) for part in re.split(r"[\s,;()]+", text) if part]
    except (ValueError, RecursionError):
        collector.problem(where, f"{text[:60]!r} are no points", "expected 'x y x y ...' or '[[x, y], ...]'")
        return []
    if isinstance(raw, dict):  # VGG Image Annotator
        x, y = raw.get("all_points_x"), raw.get("all_points_y")
        is_pair = isinstance(x, list) and isinstance(y, list) and len(x) == len(y)
        raw = [list(pair) for pair in zip(x or [], y or [], strict=True)] if is_pair else None
    is_several = isinstance(raw, list) and raw and isinstance(raw[0], list) and _is_polygon(raw[0])
    return [
        region
        for polygon in (raw if is_several else [raw])
        for region in collector.polygon(label, polygon, where, None, collector.origin(PIXEL_CENTERS))
    ]


def _is_polygon(raw: list[Any]) -> bool:
    return len(raw) > 2 or (bool(raw) and isinstance(raw[0], list))
