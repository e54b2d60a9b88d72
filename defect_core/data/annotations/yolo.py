"""Reader of YOLO segmentation: names of classes in data.yaml or classes.txt, and one text file per image with polygons.

A point is the pixel that it is in, and outlines belong to the polygon, as Ultralytics reads it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.finder import IMAGE_SUFFIXES, NotFoundError
from defect_core.data.annotations.safe_parse import read_text, read_yaml
from defect_core.data.annotations.shapes import PIXEL_CENTERS, PIXEL_CORNERS, Region, RelativePolygon
from defect_core.errors import InputError

LABELS = "labels"
IMAGES = "images"
NAME_FILES = ("classes.txt", "obj.names")
_BOX_VALUES = 4
_MAX_MEGABYTES = 64


def find_yolo(files: Iterable[Path], root: Path) -> tuple[list[Path], list[Path]]:
    """Return the files with names of classes and the label files of a source; both empty if it is not YOLO.

    Args:
        files: the files of the source.
        root: the source.
    """
    files = list(files)
    images = {(path.parent, path.stem) for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    names, labels = [], []
    for path in files:
        parents = [part.casefold() for part in path.relative_to(root).parts[:-1]]
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        if path.name in NAME_FILES or (is_yaml and _names_of(path) is not None):
            names.append(path)
        elif path.suffix == ".txt" and (LABELS in parents or (path.parent, path.stem) in images):
            labels.append(path)
    return (names, labels) if names and labels else ([], [])


def has_polygon_lines(files: Iterable[Path]) -> bool:
    """Return whether the first text file in a folder `labels` starts with a class number and coordinates."""
    file = next((path for path in files if path.suffix == ".txt" and path.parent.name.casefold() == LABELS), None)
    try:
        values = read_text(file, _MAX_MEGABYTES).partition("\n")[0].split() if file else []
        numbers = [float(value) for value in values]
    except (InputError, ValueError):
        return False
    return len(numbers) > _BOX_VALUES and numbers[0] == int(numbers[0])


def read_yolo(names: Sequence[Path], labels: Sequence[Path], collector: Collector) -> None:
    """Add the images of YOLO label files.

    An empty label file says that its image is normal. So does a missing one, for images in a folder `images` beside a
    folder `labels`, because Ultralytics trains on them as background.

    Args:
        names: files with the names of the classes.
        labels: label files.
        collector: receives the annotations and problems.
    """
    classes = _read_classes(names, collector)
    folders: set[PurePosixPath] = set()
    for file in labels:
        relative = collector.finder.relative(file)
        folders.add(relative.parent)
        try:
            image = collector.finder.find_stem(file.stem, [*_image_folders(relative.parent), relative.parent])
        except NotFoundError as error:
            collector.missing(str(file), error)
            continue
        try:
            text = read_text(file, _MAX_MEGABYTES)
        except InputError as error:
            collector.error(error)
            continue
        regions: list[Region] = []
        has_annotation = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                found = _read_line(line.split(), classes, f"{file}: line {number}", collector)
                has_annotation |= found is not None
                regions += found or []
        collector.add(image, regions, [file, *names], has_annotation=has_annotation)
    _add_images_without_label(folders, names, collector)


def _add_images_without_label(folders: set[PurePosixPath], names: Sequence[Path], collector: Collector) -> None:
    image_folders = {place for folder in folders for place in _image_folders(folder)}
    for path in collector.finder.files:
        if path.suffix.lower() not in IMAGE_SUFFIXES or path in collector.images:
            continue
        relative = collector.finder.relative(path)
        if relative.parent in image_folders:
            collector.note("images without a label file are taken as normal", str(path))
            collector.add(path, [], names, has_annotation=False)


def _read_classes(names: Sequence[Path], collector: Collector) -> dict[int, str]:
    classes: dict[int, str] = {}
    for file in names:
        collector.files[file] = None
        try:
            if file.name in NAME_FILES:
                lines = read_text(file, 1).splitlines()
                found: dict[int, Any] = {index: line.strip() for index, line in enumerate(lines) if line.strip()}
            else:
                found = _names_of(file) or {}
        except InputError as error:
            collector.error(error)
            continue
        for index, name in found.items():
            if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
                collector.problem(f"{file}: names.{index}", f"{name!r} is no name", "expected the name of a class")
            elif classes.setdefault(index, str(name)) != str(name):
                cure = "expected the same names in all files"
                collector.problem(f"{file}: names.{index}", f"is {name!r}, elsewhere {classes[index]!r}", cure)
    return classes


def _names_of(path: Path) -> dict[int, Any] | None:
    """Return the names of the classes in a YAML file by number; None if it has no usable `names`."""
    try:
        content = read_yaml(path)
    except InputError:
        return None
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, list):
        return dict(enumerate(names))
    if isinstance(names, Mapping) and all(str(key).isascii() and str(key).isdigit() for key in names):
        return {int(str(key)): name for key, name in names.items()}
    return None


def _image_folders(labels: PurePosixPath) -> list[PurePosixPath]:
    """Return where the images of a folder of labels are: each part `labels` replaced by `images`, last part first."""
    parts, places = labels.parts, []
    for index in reversed(range(len(parts))):
        if parts[index].casefold() == LABELS:
            places.append(PurePosixPath(*parts[:index], IMAGES, *parts[index + 1 :]))
    return places


def _read_line(
    values: Sequence[str], classes: Mapping[int, str], where: str, collector: Collector
) -> list[Region] | None:
    """Return the regions of a line; None if its class is no defect."""
    if not (values[0].isascii() and values[0].isdigit() and len(values[0]) < 10 and int(values[0]) in classes):
        known = ", ".join(map(str, sorted(classes)[:20]))
        collector.problem(where, f"class {values[0][:20]!r} has no name", f"expected one of {known}")
        return []
    if collector.is_ignored(classes[int(values[0])]):
        return None
    label = collector.label(classes[int(values[0])], where)
    coordinates: list[Any] = list(values[1:])
    if len(coordinates) % 2 or len(coordinates) < _BOX_VALUES:
        cure = "expected x and y of at least three points"
        collector.problem(where, f"has {len(coordinates)} coordinates", cure)
        return []
    points = collector.points(coordinates, where)
    if points is None or label is None:
        return []
    if len(points) * 2 == _BOX_VALUES:
        return _read_box(label, points, where, collector)
    _note_range(points, where, collector)
    if points.max() > 2 or points.min() < -1:
        return []
    return [RelativePolygon(label, points, collector.origin(PIXEL_CENTERS))]


def _read_box(label: str, points: np.ndarray, where: str, collector: Collector) -> list[Region]:
    half = points[1] / 2
    corners = np.stack([points[0] - half, points[0] + half])
    if not collector.box(label, corners, where, None, PIXEL_CORNERS):
        return []
    _note_range(corners, where, collector)
    (left, top), (right, bottom) = corners
    outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return [RelativePolygon(label, outline, PIXEL_CORNERS)]


def _note_range(points: np.ndarray, where: str, collector: Collector) -> None:
    if points.max() > 2 or points.min() < -1:
        collector.problem(where, f"has the coordinate {points.flat[np.abs(points).argmax()]:g}", _FRACTIONS)
    elif points.max() > 1 or points.min() < 0:
        collector.note("shapes reach outside the image and are clipped", where)


_FRACTIONS = "expected fractions of the width and the height of the image, from 0 to 1"
