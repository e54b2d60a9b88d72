"""Sets that Defectory exported: their synthetic images are never read as real images."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import SourceReader
from defect_core.data.layouts.tree import Folder
from defect_core.data.records import GOOD

MARKER = "defectory-export.json"
"""File in the folder of an exported product that says which images are synthetic."""
IsImage = Callable[[Path], bool]
CARD = "README.md"
_FILES = ("annotations.json", "data.yaml", CARD)
CARD_TITLE = "# Synthetic defects of "
REASON = "synthetic image of a Defectory export"
_MAX_BYTES = 256 << 20


@dataclass
class OwnExport:
    """What the markers and cards in a source say.

    Attributes:
        layouts: format of the export by its folder.
        synthetic: exported synthetic images.
        other: their masks and labels, and the markers and cards.
        real: exported real normal images.
        unknown: images in the folder of an export that its marker does not list.
    """

    layouts: dict[Path, str] = field(default_factory=dict)
    synthetic: list[Path] = field(default_factory=list)
    other: dict[Path, str] = field(default_factory=dict)
    real: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)


def find_own_exports(tree: Folder, is_image: IsImage) -> OwnExport:
    """Return the exported sets in a source: each folder with a marker, or with the card of an older export.

    Args:
        tree: the source.
        is_image: tells whether a file is an image.
    """
    found = OwnExport()
    folders = list(tree.all_folders())
    for folder in folders:
        marker = folder.find_file(MARKER)
        content = _read_marker(marker) if marker is not None else None
        if marker is not None and content is not None:
            _add_marked(folder, marker, content, is_image, found)
    for folder in folders:
        related = any(folder.path.is_relative_to(path) or path.is_relative_to(folder.path) for path in found.layouts)
        if not related and _has_card(folder, tree):
            _add_unmarked(folder, is_image, found)
    return found


def read_own_export(reader: SourceReader, export: OwnExport) -> list[SourceItem]:
    """Read the real normal images of exported sets; they have no split, because the synthetic images are not read."""
    return [reader.normal_item(file) for file in export.real]


def _add_marked(folder: Folder, marker: Path, content: dict[str, Any], is_image: IsImage, found: OwnExport) -> None:
    real = {str(name) for name in content.get("real", ())}
    synthetic = {str(name) for name in content.get("synthetic", ())}
    found.layouts[folder.path] = str(content.get("format", ""))
    for file in folder.all_files():
        name = file.relative_to(folder.path).as_posix()
        if name in real:
            found.real.append(file)
        elif name in synthetic or not is_image(file) or name.startswith("ground_truth/"):
            _add_synthetic(folder, file, is_image, found)
        else:
            found.unknown.append(file)
    found.other[marker] = "marker of a Defectory export"


def _add_unmarked(folder: Folder, is_image: IsImage, found: OwnExport) -> None:
    """Add the files of an export without a marker, whose real images have names that begin with `good-`."""
    names = {child.name for product in (folder, *folder.folders.values()) for child in product.folders.values()}
    found.layouts[folder.path] = "mvtec" if "ground_truth" in names else "yolo" if "labels" in names else "coco"
    for file in folder.all_files():
        if is_image(file) and file.name.startswith(f"{GOOD}-"):
            found.real.append(file)
        else:
            _add_synthetic(folder, file, is_image, found)


def _add_synthetic(folder: Folder, file: Path, is_image: IsImage, found: OwnExport) -> None:
    below = file.relative_to(folder.path).parts
    if is_image(file) and "ground_truth" not in below:
        found.synthetic.append(file)
    elif is_image(file):
        found.other[file] = "mask of a synthetic image"
    elif below[-1] in _FILES or below[0] == "labels":
        found.other[file] = "file of a Defectory export"


def _has_card(folder: Folder, tree: Folder) -> bool:
    """Return whether a folder, or the parent of the source, has the card of an export."""
    cards = [folder.find_file(CARD)]
    exported = any(folder.find(name) for name in ("train/good", "images"))
    if folder is tree and exported:
        beside = tree.path.parent / CARD
        cards.append(beside if beside.is_file() else None)
    for card in cards:
        if card is not None and card.stat().st_size < _MAX_BYTES:
            with open(card, encoding="utf-8", errors="replace") as stream:
                if stream.readline(4096).startswith(CARD_TITLE):
                    return True
    return False


def _read_marker(marker: Path) -> dict[str, Any] | None:
    if marker.stat().st_size > _MAX_BYTES:
        return None
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
