"""Collects the annotations of all images of a source, with their problems and notes, and checks shapes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.annotations.finder import FileFinder, NotFoundError, normal_form
from defect_core.data.annotations.options import AnnotationOptions
from defect_core.data.annotations.safe_parse import MAX_NUMBER, finite_number
from defect_core.data.annotations.shapes import PIXEL_CENTERS, Origin, Polygon, Rectangle, Region, Shapes
from defect_core.data.mask_sources import MaskSource
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError

BACKGROUND_LABELS = frozenset({"background", "_background_", "__background__", "__ignore__"})
MAX_LABEL = 200
MAX_POINTS = 1_000_000
_MAX_SIMILAR = 20  # problems with the same cure that are listed one by one
_TOLERANCE = 0.5  # pixels outside the image that are not worth a note


@dataclass
class _Image:
    """What is known of one image.

    Attributes:
        has_annotation: whether it has an annotation, even one without a pixel.
        has_problem: whether a problem was found since the image before.
        group: the item that it shows.
    """

    regions: list[Region] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    label_images: list[MaskSource] = field(default_factory=list)
    size: tuple[int, int] | None = None
    has_annotation: bool = False
    has_problem: bool = False
    group: str = ""


class Collector:
    """Receives what the readers of the formats find.

    Args:
        finder: the files of the source.
        options: how annotations are read.
        problems: log that receives what cannot be used.
    """

    def __init__(self, finder: FileFinder, options: AnnotationOptions, problems: ProblemLog) -> None:
        self.finder, self.options, self._problems = finder, options, problems
        self._similar: Counter[str] = Counter()
        self._notes: dict[str, list[str]] = {}
        self._has_new_problem = False
        self.images: dict[Path, _Image] = {}
        self.files: dict[Path, None] = {}
        self.labels: dict[str, None] = {}
        self._ignored = {normal_form(label).strip() for label in options.ignore_labels} | BACKGROUND_LABELS

    def problem(self, where: str | Path, what: str, cure: str) -> None:
        """Add a problem; of many with the same cure the first are listed and the others counted."""
        self._has_new_problem = True
        self._similar[cure] += 1
        if self._similar[cure] <= _MAX_SIMILAR:
            self._problems.add(str(where), what, cure)

    def error(self, error: InputError) -> None:
        """Add the problems of an error."""
        self._problems.add_error(error)

    def note(self, what: str, where: str) -> None:
        """Add a note, such as `polygons without an area are left out`; equal notes are counted."""
        self._notes.setdefault(what, []).append(where)

    def origin(self, default: Origin) -> Origin:
        """Return the convention of coordinates: that of the options, or the default of the format."""
        choice = self.options.polygon_coordinates
        return default if choice == "auto" else choice

    def find(self, name: Any, file: Path, where: str, hints: Iterable[str] = ()) -> Path | None:
        """Return the image that an annotation names, or None after a problem or a note."""
        if not isinstance(name, str) or not name.strip() or len(name) > 4096:
            self.problem(where, f"{_short(name)} is no file name", "expected the name of an image")
            return None
        try:
            return self.finder.find(name, file.parent, hints)
        except NotFoundError as error:
            self.missing(where, error)
            return None

    def missing(self, where: str, error: NotFoundError) -> None:
        """Add a problem or, by the option `missing_images`, a note about an image that is not found."""
        if not error.is_missing:
            self.problem(where, error.what, error.cure)
        elif self.options.missing_images == "leave_out":
            self.note("annotations of images that are not in the source are left out", where)
        else:
            self.problem(where, error.what, f"{error.cure}, or set annotations.missing_images: leave_out")

    def label(self, name: Any, where: str) -> str | None:
        """Return a label in NFC; None after a problem, and for labels that are no defects (see `is_ignored`)."""
        text = normal_form(str(name)).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
        if not text or len(text) > MAX_LABEL:
            self.problem(where, f"{_short(name)} is no label", "expected the name of a defect type")
            return None
        if text in self._ignored:
            return None
        self.labels[text] = None
        return text

    def is_ignored(self, name: Any) -> bool:
        """Return whether a label is a background label or in the option `ignore_labels`."""
        return isinstance(name, str) and normal_form(name).strip() in self._ignored

    def size(self, height: Any, width: Any, where: str) -> tuple[int, int] | None:
        """Return (height, width) if both are given; None if they are not, or after a problem."""
        if height is None or width is None:
            return None
        numbers = [finite_number(value) for value in (height, width)]
        if any(number is None or number < 1 or number > 1e6 or number != int(number) for number in numbers):
            self.problem(where, f"{_short(width)}x{_short(height)} is no image size", "expected width and height")
            return None
        return int(numbers[0] or 0), int(numbers[1] or 0)

    def add(
        self,
        image: Path,
        regions: Iterable[Region],
        files: Iterable[Path],
        size: tuple[int, int] | None = None,
        has_annotation: bool | None = None,
        label_images: Iterable[MaskSource] = (),
    ) -> None:
        """Add the annotation of an image to what is known of it.

        Args:
            image: the image.
            regions: its regions.
            files: the files that they were read from.
            size: (height, width) that the annotation says.
            has_annotation: whether there are annotations, even if they gave no region; None: if there are regions.
            label_images: images whose colours or values are labels.
        """
        entry, regions, files = self.images.setdefault(image, _Image()), list(regions), list(files)
        if size is not None and entry.size not in (None, size):
            self.problem(files[0], f"says another size of {image.name!r} than {entry.files[0]}", "correct one of them")
        entry.size = size or entry.size
        entry.regions += regions
        entry.files += [file for file in files if file not in entry.files]
        entry.label_images += label_images
        entry.has_problem |= self._has_new_problem
        self._has_new_problem = False
        entry.has_annotation |= bool(regions or entry.label_images) if has_annotation is None else has_annotation
        self.files.update(dict.fromkeys(files))

    def group(self, image: Path, name: str, where: str) -> None:
        """Set the item that an image shows; another one for the same image is a problem."""
        entry = self.images.setdefault(image, _Image())
        if entry.group and name != entry.group:
            self.problem(
                where, f"has the group {name!r}, another row of the image {entry.group!r}", "correct one of them"
            )
        entry.group = entry.group or name

    def points(self, raw: Any, where: str) -> NDArray[np.float64] | None:
        """Return points float64 [N, 2] from pairs or a flat list, or None after a problem."""
        try:
            if isinstance(raw, list) and len(raw) > MAX_POINTS:
                raise ValueError
            points = np.asarray(raw, dtype=np.float64)
            if points.ndim == 1:
                points = points.reshape(-1, 2)
            if points.ndim != 2 or points.shape[1] != 2:
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            self.problem(where, f"{_short(raw)} are no points", "expected pairs of numbers x and y")
            return None
        usable = np.abs(points) <= MAX_NUMBER  # False for NaN
        if not usable.all():
            index = int(np.flatnonzero(~usable.all(axis=1))[0])
            self.problem(
                where, f"point {index} is ({points[index, 0]}, {points[index, 1]})", "expected finite coordinates"
            )
            return None
        return points

    def polygon(
        self, label: str, raw: Any, where: str, size: tuple[int, int] | None, origin: Origin = PIXEL_CENTERS
    ) -> list[Region]:
        """Return the polygon in a list that is empty after a problem or a note.

        Args:
            label: its label.
            raw: pairs of coordinates in pixels, or a flat list.
            where: file and field.
            size: (height, width) of the image if it is known; points outside are counted in a note.
            origin: convention of the coordinates.
        """
        points = self.points(raw, where)
        if points is None:
            return []
        if len(points) < 3 or not _has_area(points, origin):
            self.note("polygons without an area are left out", where)
            return []
        self.note_outside(points, where, size)
        return [Polygon(label, points, origin)]

    def box(
        self,
        label: str,
        corners: Any,
        where: str,
        size: tuple[int, int] | None,
        origin: Origin,
        is_outline: bool = False,
    ) -> list[Region]:
        """Return the rectangle in a list that is empty after a problem or a note.

        Args:
            label: its label.
            corners: left, top, right, bottom in pixels.
            where: file and field.
            size: (height, width) of the image if it is known.
            origin: convention of the coordinates.
            is_outline: whether the annotator chose a rectangle as the outline. A bounding box is subject to `boxes`.
        """
        points = self.points(corners, where)
        if points is None or len(points) != 2:
            if points is not None:
                self.problem(where, f"{_short(corners)} is no rectangle", "expected two corners")
            return []
        if not is_outline and self.options.boxes != "rectangles":
            if self.options.boxes == "leave_out":
                self.note("bounding boxes without an outline are left out", where)
            else:
                cure = "add outlines, or set annotations.boxes: rectangles (the whole box is the defect) or leave_out"
                self.problem(where, "is a bounding box without an outline of the defect", cure)
            return []
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        if origin != PIXEL_CENTERS and (left == right or top == bottom):
            self.note("rectangles without an area are left out", where)
            return []
        self.note_outside(points, where, size)
        return [Rectangle(label, (left, top, right, bottom), origin)]

    def note_outside(self, points: NDArray[np.float64], where: str, size: tuple[int, int] | None) -> None:
        """Add a note if points float64 [N, 2] are outside the image."""
        if size is None:
            return
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        height, width = size
        if right < 0 or bottom < 0 or left > width or top > height:
            self.note("shapes are outside the image and have no pixel", where)
        elif min(left, top) < -_TOLERANCE or right > width + _TOLERANCE or bottom > height + _TOLERANCE:
            self.note("shapes reach outside the image and are clipped", where)

    def summaries(self) -> tuple[str, ...]:
        """Return one line per kind of note, with the number and the first place."""
        folder = f"{self.finder.root}/"
        return tuple(
            f"{what}: {len(places)} (the first: {places[0].removeprefix(folder)})"
            for what, places in self._notes.items()
        )

    def finish(self) -> None:
        """Add a line for problems that were counted and not listed."""
        for cure, count in self._similar.items():
            if count > _MAX_SIMILAR:
                self._problems.add(str(self.finder.root), f"{count - _MAX_SIMILAR} more problems of this kind", cure)

    def shapes(self) -> dict[Path, Shapes]:
        """Return the shapes of each image that has an annotation."""
        return {
            path: Shapes(tuple(entry.regions), tuple(entry.files), entry.size, tuple(entry.label_images))
            for path, entry in self.images.items()
            if entry.has_annotation
        }


def _has_area(points: NDArray[np.float64], origin: Origin) -> bool:
    """Return whether a polygon covers pixels: with pixel centres, points in one pixel or a line do."""
    if origin == PIXEL_CENTERS:
        return bool((points == np.floor(points)).all()) or _area(points) > 0
    return _area(points) > 0


def _area(points: NDArray[np.float64]) -> float:
    x, y = (points - points[0]).T  # the last edge, to the first point at the origin, adds nothing
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:])) / 2)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, list | dict) else repr(value)[:80]
    return text if len(text) <= 60 else text[:57] + "..."
