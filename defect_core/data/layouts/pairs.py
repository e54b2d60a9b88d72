"""Data sets with one unnamed defect type: KolektorSDD, KolektorSDD2, DAGM, and images with a label image beside them.

An image with an empty label is a normal image.
"""

import re
from collections import Counter
from pathlib import Path

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import MASK_ENDINGS, MaskIndex, SourceReader
from defect_core.data.layouts.tree import Folder, name_key

DEFAULT_DEFECT = "defect"
_KOLEKTOR = re.compile(r"kos[0-9]+", re.IGNORECASE)
SPLITS = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}


def detect_kolektor(reader: SourceReader) -> bool:
    """Return whether a source has the folders kosNN with PartM.jpg and PartM_label.bmp of KolektorSDD."""
    folders = [folder for folder in reader.tree.folders.values() if _KOLEKTOR.fullmatch(folder.name)]
    return bool(folders) and all(_has_pair(folder, "_label") for folder in folders)


def detect_kolektor2(reader: SourceReader) -> bool:
    """Return whether a source has NNNN.png and NNNN_GT.png in train and test, as KolektorSDD2."""
    folders = [reader.tree.find(name) for name in ("train", "test")]
    return all(folder is not None and _has_pair(folder, "_gt") for folder in folders)


def detect_dagm(reader: SourceReader) -> bool:
    """Return whether a source is one class of DAGM: Train and Test, with a folder Label in at least one of them."""
    folders = [folder for name in ("Train", "Test") if (folder := reader.tree.find(name)) is not None]
    labels = [label for folder in folders if (label := folder.find("Label")) is not None]
    return len(folders) == 2 and any(name_key(file.stem).endswith("_label") for one in labels for file in one.files)


def detect_pairs(reader: SourceReader) -> bool:
    """Return whether every image of a source has a label image beside it, with one ending for all."""
    suffix = reader.options.mask_suffix
    images, masks, index = _split_images(reader)
    endings = {
        name_key(mask.name if suffix else mask.stem).removeprefix(name_key(image.stem))
        for image in images
        for mask in index[image.parent].find(image, same_stem=False)
    }
    return bool(images) and len(images) == len(masks) and len(endings) == 1


def read_pairs(reader: SourceReader) -> list[SourceItem]:
    """Read images with a label image beside each; an image with an empty label is normal.

    The defect type is the option `defect`, or `defect`. Folders named train, val or test give the split, and folders
    named kosNN (KolektorSDD) the group: they are the parts of one item.
    """
    label = reader.options.defect or DEFAULT_DEFECT
    images, masks, index = _split_images(reader)
    used: set[Path] = set()
    items = []
    for file in images:
        names = file.parent.relative_to(reader.tree.path).parts
        hint = next((SPLITS[name.lower()] for name in names if name.lower() in SPLITS), "")
        group = next((name for name in names if _KOLEKTOR.fullmatch(name)), "")
        found = index[file.parent].find(file, same_stem=False)
        if found:
            used.add(found[0])
            items.append(
                reader.labelled_item(file, reader.mask_file(found[:1], label), reader.label(label), hint, group)
            )
        else:
            expected = f"{file.stem}{reader.options.mask_suffix or '_label or _mask'} beside it"
            items += reader.handle_missing_mask(file, label, expected, hint)
    for mask in masks - used:
        reader.reasons[mask] = "mask without an image"
    return items


def read_dagm(reader: SourceReader) -> list[SourceItem]:
    """Read one class of DAGM: Train and Test with NNNN.PNG, Label/NNNN_label.PNG and Label/Labels.txt.

    An image without a label is normal. An image that Labels.txt calls defective needs a label.
    """
    label = reader.options.defect or DEFAULT_DEFECT
    items = []
    for name, hint in (("Train", "train"), ("Test", "test")):
        folder = reader.tree.find(name)
        if folder is None:
            continue
        labels = folder.find("Label")
        flags = _read_labels(reader, labels)
        for file in reader.images(folder, skip=("Label",)):
            found = [] if labels is None else reader.mask_index(labels).find(file, same_stem=False)
            if found:
                items.append(reader.masked_item(file, found[:1], label, hint))
            elif flags.get(name_key(file.name)):
                expected = f"{folder.path}/Label/{file.stem}_label{file.suffix}, because Labels.txt calls it defective"
                items += reader.handle_missing_mask(file, label, expected, hint)
            else:
                items.append(reader.normal_item(file, hint))
    return items


def _read_labels(reader: SourceReader, folder: Folder | None) -> dict[str, bool]:
    """Return by image name whether Labels.txt calls it defective; empty without this file.

    A row has the columns number, flag, image, 0, label image.
    """
    table = None if folder is None else folder.find_file("Labels.txt")
    if table is None:
        return {}
    reader.tables.append(table)
    rows = [line.split() for line in table.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {name_key(row[2]): row[1] not in ("0", "-") for row in rows if len(row) >= 3}


def _split_images(reader: SourceReader) -> tuple[list[Path], set[Path], dict[Path, MaskIndex]]:
    """Return the images of a source, its label images, and an index of these by folder."""
    suffix = reader.options.mask_suffix
    images, masks, index = [], set(), {}
    for folder in reader.tree.all_folders():
        marked = []
        for file in folder.files:
            name, ends = (file.name, (name_key(suffix),)) if suffix else (file.stem, MASK_ENDINGS)
            if name_key(name).endswith(ends) and (suffix or reader.is_image(file)):
                marked.append(file)
            elif reader.is_image(file):
                images.append(file)
        masks.update(marked)
        index[folder.path] = MaskIndex(marked, suffix)
    return images, masks, index


def _has_pair(folder: Folder, ending: str) -> bool:
    """Return whether a folder has images and most of them have a label with this ending beside them."""
    stems = Counter(name_key(file.stem) for file in folder.files)
    images = [stem for stem in stems if not stem.endswith(ending)]
    paired = sum(f"{stem}{ending}" in stems for stem in images)
    return bool(images) and 2 * paired > len(images)
