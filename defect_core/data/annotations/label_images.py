"""Reader of label images: a folder `SegmentationClass` whose colours are labels (CVAT "segmentation mask 1.1", VOC)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.annotations.collect import BACKGROUND_LABELS, Collector
from defect_core.data.annotations.finder import IMAGE_SUFFIXES, NotFoundError, normal_form
from defect_core.data.annotations.safe_parse import read_text
from defect_core.data.annotations.shapes import size_message
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
        default: label of all other colours; None: another colour is a problem. It is set if there is only one label,
            because every pixel that is not background is then that defect.
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
        try:
            with Image.open(self.file) as picture:
                if picture.size != (width, height):
                    raise InputError(size_message(str(self.file), picture.size[::-1], (height, width)))
                is_gray = picture.mode in ("L", "1") or picture.mode.startswith("I")
                values = np.asarray(picture if is_gray else picture.convert("RGB")).astype(np.int64)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.file}: not a readable mask ({reason}); expected a png file") from None
        if is_gray:
            values = np.repeat(values[:, :, None], 3, axis=2)
        codes, inverse = np.unique(values @ [1 << 32, 1 << 16, 1], return_inverse=True)
        colors = [(int(code >> 32), int(code >> 16 & 0xFFFF), int(code & 0xFFFF)) for code in codes]
        names = [self._label(color, colors, is_gray) for color in colors]
        inverse = inverse.reshape(height, width)
        masks: dict[str, NDArray[np.bool_]] = {}
        for index, name in enumerate(names):
            if name:
                mask = inverse == index
                masks[name] = masks[name] | mask if name in masks else mask
        return masks

    def _label(self, color: Color, colors: Sequence[Color], is_gray: bool) -> str:
        if is_gray and any(other not in self.labels for other in colors) and max(colors)[0] < len(self.numbers):
            return self.numbers[color[0]]
        if color in self.labels:
            return self.labels[color]
        if color in ((0, 0, 0), _VOID):
            return ""
        if self.default is not None:
            return self.default
        name = ",".join(map(str, color))
        raise InputError(f"{self.file}: has the colour {name}, which has no label; add it to {LABEL_MAP}")


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
