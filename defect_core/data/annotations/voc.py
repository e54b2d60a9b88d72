"""Reader of the XML files of Pascal VOC. They hold bounding boxes; masks are in `SegmentationClass` (`label_images`).

Boxes count pixels from 1 and include both corners.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import Element

from defect_core.data.annotations.collect import Collector
from defect_core.data.annotations.finder import IMAGE_SUFFIXES, NotFoundError
from defect_core.data.annotations.safe_parse import finite_number
from defect_core.data.annotations.shapes import PIXEL_CENTERS, Region

_HINTS = ("JPEGImages", "../JPEGImages", "../images", "images")


def object_names(roots: Sequence[Element]) -> list[str]:
    """Return the names of all objects."""
    return [name.strip() for root in roots for entry in root.iter("object") if (name := entry.findtext("name"))]


def read_voc(file: Path, root: Element, collector: Collector, with_masks: bool = False) -> None:
    """Add the image of a VOC file; a file without objects says that the image is normal.

    Args:
        file: the file, for messages.
        root: its root element, `<annotation>`.
        collector: receives the annotations and problems. Objects of images that have a label image are not read.
        with_masks: whether the source has label images.
    """
    image = _find_image(root.findtext("filename"), file, collector)
    if image is None:
        return
    size = collector.size(root.findtext("size/height"), root.findtext("size/width"), f"{file}: <size>")
    if size is None and root.find("size") is not None:
        return
    regions: list[Region] = []
    has_annotation = False
    known = collector.images.get(image)
    if with_masks and known is not None and known.label_images:
        collector.add(image, [], [file], size, has_annotation=True)
        return
    for index, entry in enumerate(root.iter("object"), 1):
        where = f"{file}: <object> {index}"
        if collector.is_ignored(entry.findtext("name")):
            continue
        has_annotation = True
        label = collector.label(entry.findtext("name"), f"{where}, <name>")
        numbers = [finite_number(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if None in numbers:
            collector.problem(f"{where}, <bndbox>", "has no usable corners", "expected xmin, ymin, xmax and ymax")
        elif label is not None:
            corners = [number - 1 for number in numbers if number is not None]
            regions += collector.box(label, corners, where, size, collector.origin(PIXEL_CENTERS))
    collector.add(image, regions, [file], size, has_annotation)


def _find_image(name: str | None, file: Path, collector: Collector) -> Path | None:
    if name and Path(name).suffix.lower() not in IMAGE_SUFFIXES:  # some tools leave the suffix out
        folder = collector.finder.relative(file).parent
        with suppress(NotFoundError):
            return collector.finder.find_stem(name.strip(), [folder.parent / "JPEGImages", folder])
    return collector.find(name, file, f"{file}: <filename>", _HINTS)
