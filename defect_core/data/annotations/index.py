"""Finds the annotation files of a source, recognises their format by their content, and reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from defect_core.data.annotations.coco import is_coco, read_coco
from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.cvat import read_cvat
from defect_core.data.annotations.finder import FileFinder, normal_form
from defect_core.data.annotations.label_images import find_label_images, read_label_images
from defect_core.data.annotations.label_studio import is_label_studio, read_label_studio
from defect_core.data.annotations.labelme import is_labelme, read_labelme
from defect_core.data.annotations.options import AnnotationOptions, check_annotation_options
from defect_core.data.annotations.safe_parse import read_json, read_xml
from defect_core.data.annotations.shapes import Shapes
from defect_core.data.annotations.table import read_header, read_table, table_columns
from defect_core.data.annotations.voc import object_names, read_voc
from defect_core.data.annotations.yolo import find_yolo, has_polygon_lines, read_yolo
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError

_JSON_READERS: dict[str, tuple[Callable[[Any], bool], Callable[[Path, Any, Collector], None]]] = {
    "labelme": (is_labelme, read_labelme),
    "coco": (is_coco, read_coco),
    "label_studio": (is_label_studio, read_label_studio),
}
_XML_ROOTS = {"annotations": "cvat", "annotation": "voc"}


@dataclass(frozen=True)
class AnnotationIndex:
    """The annotations of the images of a source.

    Attributes:
        format: name of the format, see `FORMATS`.
        files: the annotation files that were read, without mask images.
        labels: labels of defect types, in the order of their first use.
        normal_images: images that the annotations list without a defect, in natural order.
        notes: what is unusual, one line each.
        empty_mask_is_normal: whether an image whose masks have no pixel is a normal image.
        shapes: the annotation of each image that has one.
        groups: the item that each image shows, from the column `group_column` of a table.
        unusable: images whose annotation is a problem in the log, so that no mask of them is expected.
    """

    format: str
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    normal_images: tuple[Path, ...]
    notes: tuple[str, ...]
    empty_mask_is_normal: bool
    shapes: Mapping[Path, Shapes]
    groups: Mapping[Path, str] = field(default_factory=dict)
    unusable: frozenset[Path] = frozenset()

    @property
    def images(self) -> tuple[Path, ...]:
        """The images that have an annotation, in the order of the annotations."""
        return tuple(self.shapes)

    @property
    def mask_files(self) -> tuple[Path, ...]:
        """The mask images that annotations refer to."""
        known = set(self.files)
        paths = dict.fromkeys(path for shapes in self.shapes.values() for path in shapes.paths)
        return tuple(path for path in paths if path not in known)

    def for_image(self, path: Path) -> Shapes | None:
        """Return the annotation of an image, or None if it has none.

        Args:
            path: the image, below the folder that was read.
        """
        found = self.shapes.get(path)
        return self._by_name.get(normal_form(path.as_posix())) if found is None else found

    def group_for(self, path: Path) -> str:
        """Return the item that an image shows; empty if the annotations do not say it."""
        return self.groups.get(path, "")

    @cached_property
    def _by_name(self) -> dict[str, Shapes]:
        return {normal_form(path.as_posix()): shapes for path, shapes in self.shapes.items()}


def read_annotations(
    root: Path,
    options: AnnotationOptions | Mapping[str, Any] | None = None,
    problems: ProblemLog | None = None,
) -> AnnotationIndex | None:
    """Return the annotations of a source, or None if it has no annotation file.

    No image is decoded. Every file that is recognised is read, so that all problems are found at once.

    Args:
        root: folder of the source.
        options: how annotations are read; see `AnnotationOptions`.
        problems: log that receives what cannot be used; None: problems are raised.

    Raises:
        InputError, InputErrors: something cannot be used, and no log is given.
    """
    root, log = Path(root), ProblemLog() if problems is None else problems
    checked = check_annotation_options(options, log)
    finder = FileFinder(root)
    collector = Collector(finder, checked, log)
    readers = _find_readers(finder, checked, collector)
    chosen = _choose(readers, root, checked, collector)
    if chosen is not None:
        readers[chosen]()
    collector.finish()
    if problems is None:
        log.raise_if_any()
    if chosen is None:
        return None
    shapes = collector.shapes()
    normal = [path for path in finder.files if path in collector.images and path not in shapes]
    has_label_images = any(one.label_images for one in shapes.values())
    return AnnotationIndex(
        chosen,
        tuple(collector.files),
        tuple(collector.labels),
        tuple(normal),
        collector.summaries(),
        has_label_images,
        shapes,
        {path: entry.group for path, entry in collector.images.items() if entry.group},
        frozenset(path for path, entry in collector.images.items() if entry.has_problem),
    )


def _find_readers(
    finder: FileFinder, options: AnnotationOptions, collector: Collector
) -> dict[str, Callable[[], None]]:
    """Return a function per format that was found, which reads all files of this format."""
    files = _chosen_files(finder, options, collector)
    readers: dict[str, Callable[[], None]] = {}
    by_format: dict[str, list[tuple[Path, Any]]] = {}
    is_explicit = options.file is not None or options.format != "auto"
    for path in files:
        try:
            found = _recognise(path, finder.root, options, is_explicit)
        except InputError as error:
            collector.error(error)
            continue
        if found is not None:
            by_format.setdefault(found[0], []).append((path, found[1]))
    for name, (_, read) in _JSON_READERS.items():
        if name in by_format:
            readers[name] = lambda entries=by_format[name], read=read: _read_all(entries, read, collector)
    if "cvat" in by_format:
        readers["cvat"] = lambda: _read_all(by_format["cvat"], read_cvat, collector)
    if "csv" in by_format:
        readers["csv"] = lambda: _read_all(by_format["csv"], lambda path, _, into: read_table(path, into), collector)
    label_images, voc = find_label_images(files), by_format.get("voc", [])
    if label_images or voc:
        name = "segmentation_masks" if label_images else "voc"
        readers[name] = lambda: _read_voc(voc, label_images, collector)
    names, labels = find_yolo(files, finder.root)
    if labels:
        readers["yolo"] = lambda: read_yolo(names, labels, collector)
    elif not readers and has_polygon_lines(files):
        cure = "add data.yaml with 'names: [scratch, dent]', or classes.txt"
        collector.problem(finder.root, "has YOLO labels without names of classes", cure)
    return readers


def _chosen_files(finder: FileFinder, options: AnnotationOptions, collector: Collector) -> list[Path]:
    if options.file is None:
        return finder.files
    wanted = normal_form(options.file.strip("/"))
    files = [
        path
        for path in finder.files
        if (name := finder.relative(path).as_posix()) == wanted or name.startswith(f"{wanted}/")
    ]
    if not files:
        collector.problem("annotations.file", f"{options.file!r} is not in {finder.root}", "expected a file in it")
    return files


def _recognise(path: Path, root: Path, options: AnnotationOptions, is_explicit: bool) -> tuple[str, Any] | None:
    """Return the format and the content of an annotation file; None for other files.

    Raises:
        InputError: a JSON or XML file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = read_json(path, options.max_megabytes)
        if isinstance(content, dict):
            content.pop("imageData", None)  # labelme's copy of the image, too large to keep for every file
        return next(((name, content) for name, (fits, _) in _JSON_READERS.items() if fits(content)), None)
    if suffix == ".xml":
        element: Element = read_xml(path, options.max_megabytes)
        return (_XML_ROOTS[element.tag], element) if element.tag in _XML_ROOTS else None
    if suffix in (".csv", ".tsv") and (is_explicit or path.parent == root):
        is_chosen = options.format == "csv" and options.file is not None
        fits = is_chosen or table_columns(read_header(path, options)[0], options) is not None
        return ("csv", None) if fits else None
    return None


def _choose(
    readers: Mapping[str, Callable[[], None]], root: Path, options: AnnotationOptions, collector: Collector
) -> str | None:
    """Return the format to read; several formats and a missing one are problems."""
    if options.format != "auto":
        name = options.format
        if name == "voc" and "segmentation_masks" in readers:
            name = "segmentation_masks"
        if name not in readers:
            found = f"found {', '.join(readers)}" if readers else "found no annotation file"
            collector.problem("annotations.format", f"is {options.format}, but {root} has no such file", found)
            return None
        return name
    if len(readers) > 1:
        cure = "choose one by annotations.format or annotations.file"
        collector.problem(root, f"has annotations in several formats: {', '.join(readers)}", cure)
        return None
    return next(iter(readers), None)


def _read_all(
    entries: list[tuple[Path, Any]], read: Callable[[Path, Any, Collector], None], collector: Collector
) -> None:
    for path, content in entries:
        collector.files[path] = None
        read(path, content, collector)


def _read_voc(voc: list[tuple[Path, Element]], label_images: list[Path], collector: Collector) -> None:
    if label_images:
        read_label_images(label_images, object_names([element for _, element in voc]), collector)
    for path, element in voc:
        collector.files[path] = None
        read_voc(path, element, collector, with_masks=bool(label_images))
