"""The steel defects of Severstal: a folder of images and a table with run-length encoded masks."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import SourceReader
from defect_core.data.layouts.tree import Folder
from defect_core.errors import InputError

TABLE = "train.csv"
IMAGES = "train_images"
_COLUMNS = (("ImageId", "ClassId", "EncodedPixels"), ("ImageId_ClassId", "EncodedPixels"))
_FIELD_LIMIT = 1 << 27


@dataclass(frozen=True)
class RunLengths:
    """Masks of one image as run lengths: pairs of start and length, down the columns, the first pixel is 1.

    Attributes:
        paths: the table, for messages.
        image: name of the image in the table.
        runs: text of the run lengths, by label.
    """

    paths: tuple[Path, ...]
    image: str
    runs: Mapping[str, str]

    def masks(self, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [H, W] per label; labels without a pixel are left out.

        Raises:
            InputError: the text is no list of run lengths, or a run ends after the last pixel.
        """
        result = {}
        for label, text in self.runs.items():
            mask = self._decode(text, label, height, width)
            if mask.any():
                result[label] = mask
        return result

    def _decode(self, text: str, label: str, height: int, width: int) -> NDArray[np.bool_]:
        where = f"{self.paths[0]}: {self.image}, {label}"
        try:
            numbers = np.array(text.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            raise InputError(f"{where}: {text[:40]!r}; expected pairs of start and length") from None
        if numbers.size % 2:
            raise InputError(f"{where}: {numbers.size} numbers; expected pairs of start and length")
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        if (starts < 0).any() or (lengths < 0).any() or (starts + lengths > height * width).any():
            raise InputError(f"{where}: a run is outside the image of {width}x{height} pixels; expected it inside")
        changes = np.zeros(height * width + 1, dtype=np.int64)
        np.add.at(changes, starts, 1)
        np.add.at(changes, starts + lengths, -1)
        covered = np.cumsum(changes[:-1]) > 0
        return np.ascontiguousarray(covered.reshape(width, height).T)


def detect_severstal(reader: SourceReader) -> bool:
    """Return whether a source has the table and the folder of images of Severstal."""
    table = reader.tree.find_file(TABLE)
    if table is None or reader.tree.find(IMAGES) is None:
        return False
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as stream:
        header = [name.strip() for name in stream.readline(4096).split(",")]
    return tuple(header) in _COLUMNS


def read_severstal(reader: SourceReader) -> list[SourceItem]:
    """Read train_images and train.csv with the columns ImageId, ClassId, EncodedPixels (or ImageId_ClassId).

    An image without a row, or with empty rows only, is normal. The defect types are `class_1` to `class_4`, or the
    values of the option `mask_values`.
    """
    table, images = reader.tree.find_file(TABLE), reader.tree.find(IMAGES)
    if table is None or images is None:
        reader.problems.add(reader.tree.path, f"has no {TABLE} or no {IMAGES}", "expected both")
        return []
    reader.tables.append(table)
    runs = _read_runs(reader, table)
    labels = {label: Folder(images.path) for by_label in runs.values() for label in by_label}
    selected = reader.select({label: labels[label] for label in sorted(labels)})
    files = reader.images(images)
    missing = sorted(set(runs) - {file.name for file in files})
    for name in missing[:20]:
        reader.problems.add(table, f"names the image {name}, which is not in {IMAGES}", "expected it there")
    if len(missing) > 20:
        reader.problems.add(
            table, f"names {len(missing) - 20} more images that are not in {IMAGES}", "expected them there"
        )
    items = []
    for file in files:
        chosen = {label: text for label, text in runs.get(file.name, {}).items() if label in selected}
        if chosen:
            items.append(reader.defect_item(file, RunLengths((table,), file.name, chosen), None))
        elif runs.get(file.name):
            reader.reasons[file] = "defect type that the option defects does not name"
        else:
            items.append(reader.normal_item(file))
    reader.ignore_all(reader.tree.find("test_images"), "test image without a public annotation")
    return items


def _read_runs(reader: SourceReader, table: Path) -> dict[str, dict[str, str]]:
    """Return the text of the run lengths by image and label; images with empty rows only have no label."""
    names = {str(key): label for key, label in (reader.options.mask_values or {}).items()}
    runs: dict[str, dict[str, str]] = defaultdict(dict)
    csv.field_size_limit(_FIELD_LIMIT)
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as stream:
        for row in csv.DictReader(stream):
            image, number = row.get("ImageId"), row.get("ClassId")
            if "ImageId_ClassId" in row:
                image, _, number = (row["ImageId_ClassId"] or "").rpartition("_")
            text = (row.get("EncodedPixels") or "").strip()
            by_label = runs[image or ""]
            if text:
                label = names.get(number or "", f"class_{number}")
                by_label[label] = f"{by_label[label]} {text}" if label in by_label else text
    return dict(runs)
