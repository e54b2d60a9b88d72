"""Reader of label images: a folder `SegmentationClass` whose colours are labels (CVAT "segmentation mask 1.1", VOC)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.annotations.collect import BACKGROUND_LABELS, Collector
from defect_core.data.annotations.finder import IMAGE_SUFFIXES, NotFoundError, normal_form
from defect_core.data.annotations.safe_parse import read_text
from defect_core.data.annotations.shapes import size_message
from defect_core.data.images import ORIENTATION, open_image, turn_upright
from defect_core.data.mask_pixels import value_counts
from defect_core.data.mask_sources import MaskFile
from defect_core.data.problems import printable
from defect_core.errors import InputError

FOLDER = "SegmentationClass"
LABEL_MAP = "labelmap.txt"
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_VOID = (224, 224, 192)  # outlines of uncertain pixels in Pascal VOC
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelImage:
    """An image whose colours are labels.

    Attributes:
        file: the image.
        labels: label of each colour (red, green, blue); an empty label means background.
        numbers: labels by the value of a grey image, used if its values are not grey colours in `labels`.
        default: label of all other colours; None: another colour is a problem. It is set if there is only one label:
            a file with other colours is then read as a mask of that defect (see `MaskFile`).
    """

    file: Path
    labels: Mapping[Color, str]
    numbers: tuple[str, ...] = ()
    default: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The image."""
        return (self.file,)

    def masks(self, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [H, W] per label.

        Raises:
            InputError: the file cannot be read, is of another size, or has a colour without a label.
        """
        values, color_of, is_gray = self._read(height, width)
        if values.shape != (height, width):
            raise InputError(size_message(printable(self.file), values.shape, (height, width)))
        present = [int(value) for value in value_counts(values)]
        colors = [color_of(value) for value in present]
        by_number = is_gray and any(color not in self.labels for color in colors)
        by_number = by_number and max(present, default=0) < len(self.numbers)
        masks: dict[str, NDArray[np.bool_]] = {}
        for value, color in zip(present, colors, strict=True):
            label = self.numbers[value] if by_number else self.labels.get(color)
            if label is None and color not in ((0, 0, 0), _VOID):
                if self.default is not None:
                    return MaskFile((self.file,), self.default).masks(height, width)
                name = ",".join(map(str, color))
                raise InputError(
                    f"{printable(self.file)}: has the colour {name} without a label; add it to {LABEL_MAP}"
                )
            if label:
                mask = values == value
                masks[label] = masks[label] | mask if label in masks else mask
        return masks

    def _read(self, height: int, width: int) -> tuple[NDArray[Any], Callable[[int], Color], bool]:
        """Return the upright values [H, W], the colour of a value, and whether the file is grey."""
        with open_image(self.file, "mask") as picture:
            if sorted(picture.size) != sorted((height, width)):  # before its pixels are decoded
                raise InputError(size_message(printable(self.file), picture.size[::-1], (height, width)))
            turn = picture.getexif().get(ORIENTATION, 1) if picture.format != "TIFF" else 1
            picture.load()
            is_gray = picture.mode in ("L", "1") or picture.mode.startswith("I")
            palette = picture.getpalette("RGB") or [] if picture.mode == "P" else []
            if picture.mode == "P":
                values = np.array(picture)
            elif is_gray:
                values = np.array(picture.convert("L") if picture.mode == "1" else picture)
            else:
                channels = np.asarray(picture.convert("RGB"))
                values = channels[:, :, 0].astype(np.int32) << 16
                values |= channels[:, :, 1].astype(np.int32) << 8
                values |= channels[:, :, 2]
        values = turn_upright(values, turn)
        if palette:
            table = [*palette, *([0] * (768 - len(palette)))]
            return values, lambda value: (table[3 * value], table[3 * value + 1], table[3 * value + 2]), False
        if is_gray:
            return values, lambda value: (value, value, value), True
        return values, lambda value: (value >> 16, value >> 8 & 255, value & 255), False


def find_label_images(files: Sequence[Path]) -> list[Path]:
    """Return the label images among the files of a source."""
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and FOLDER in file.parts[:-1]]


def read_label_images(label_images: Sequence[Path], names_in_xml: Sequence[str], collector: Collector) -> None:
    """Add the images that label images belong to.

    Args:
        label_images: the label images.
        names_in_xml: names of objects in the XML files of Pascal VOC. If there is one only and no label map, every
            colour has this label.
        collector: receives the annotations and problems.
    """
    maps: dict[Path, tuple[dict[Color, str], list[Path]]] = {}
    for file in label_images:
        parts = collector.finder.relative(file).parts
        index = len(parts) - 1 - parts[::-1].index(FOLDER)
        base = PurePosixPath(*parts[:index])
        folder = collector.finder.root.joinpath(*file.relative_to(collector.finder.root).parts[:index])
        if folder not in maps:
            maps[folder] = _read_map(folder, names_in_xml, collector)
        inner = parts[index + 1 : -1]
        places = [PurePosixPath(base, name, *inner) for name in _IMAGE_FOLDERS]
        try:
            image = collector.finder.find_stem(file.stem, places)
        except NotFoundError as error:
            collector.missing(str(file), error)
            continue
        colors, sources = maps[folder]
        numbers = tuple(colors.values())
        defects = sorted({label for label in numbers if label})
        default = defects[0] if len(defects) == 1 else None
        if colors:
            collector.add(image, [], sources, has_annotation=True)
            collector.images[image].label_images.append(LabelImage(file, colors, numbers, default))


def _read_map(folder: Path, names_in_xml: Sequence[str], collector: Collector) -> tuple[dict[Color, str], list[Path]]:
    """Return the label of each colour, empty for background, and the files that say it."""
    root = collector.finder.root
    places = [place for place in (folder, *folder.parents) if place.is_relative_to(root)]
    file = next((place / LABEL_MAP for place in places if (place / LABEL_MAP).is_file()), None)
    lines: list[tuple[str, str, str]] = []
    if collector.options.label_colors:
        lines = [(f"label_colors.{key}", key, value) for key, value in collector.options.label_colors.items()]
    elif file is not None:
        collector.files[file] = None
        try:
            text = read_text(file, 1)
        except InputError as error:
            collector.error(error)
            return {}, []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                label, *rest = line.rsplit(":", 3)
                lines.append((f"{file}: line {number}", label, rest[0] if rest else ""))
    elif len(set(names_in_xml)) == 1:
        label = collector.label(names_in_xml[0], str(folder))
        return ({(0, 0, 0): "", (-1, -1, -1): label} if label else {}), []
    else:
        cure = f"add {LABEL_MAP} with lines such as 'scratch:128,0,0::', or the option label_colors"
        collector.problem(folder / FOLDER, "has no labels for its colours", cure)
        return {}, []
    return _parse_map(lines, collector), [file] if file is not None else []


def _parse_map(lines: Sequence[tuple[str, str, str]], collector: Collector) -> dict[Color, str]:
    colors: dict[Color, str] = {(0, 0, 0): ""}
    for where, name, value in lines:
        parts = [part.strip() for part in value.split(",")]
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
            collector.problem(where, f"{value!r} is no colour", "expected red,green,blue from 0 to 255")
            continue
        color = (int(parts[0]), int(parts[1]), int(parts[2]))
        is_background = normal_form(name).strip().casefold() in BACKGROUND_LABELS or collector.is_ignored(name)
        label = "" if is_background else collector.label(name, where)
        if label is not None:
            if colors.get(color):
                collector.problem(where, f"has the colour of {colors[color]!r}", "expected one colour per label")
            colors[color] = label
    return colors
