"""VisA, MVTec LOCO AD and MVTec 3D-AD, whose folders differ from those of MVTec AD.

Each function reads the folder of one product.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import SourceReader
from defect_core.data.layouts.tree import Folder, name_key
from defect_core.data.records import GOOD

SPLIT_FILE = "split_csv/1cls.csv"
# The validation images are normal and not part of the published test set, so they are used for training.
_NORMAL_SPLITS = {"train": "train", "validation": "train", "test": "test"}
_MASKS_3D = "gt"


def detect_visa(reader: SourceReader) -> bool:
    """Return whether a source has the folders of one object of VisA."""
    return reader.tree.find("Data/Images/Normal") is not None


def detect_mvtec3d(reader: SourceReader) -> bool:
    """Return whether a source has the folders of one product of MVTec 3D-AD."""
    return reader.tree.find(f"train/{GOOD}/rgb") is not None


def detect_loco(reader: SourceReader) -> bool:
    """Return whether a source has a folder of masks per image, as MVTec LOCO AD."""
    if reader.tree.find(f"train/{GOOD}") is None:
        return False
    for label, folder in _defect_folders(reader).items():
        masks = reader.tree.find(f"ground_truth/{label}")
        stems = {name_key(file.stem) for file in folder.files if reader.is_image(file)}
        if masks is not None and any(name_key(name) in stems for name in masks.folders):
            return True
    return False


def read_visa(reader: SourceReader) -> list[SourceItem]:
    """Read VisA: Data/Images/Normal, Data/Images/Anomaly and Data/Masks/Anomaly of one object.

    VisA has no defect types, so all defects are `anomaly` or as the option `defect` says. Its mask values are numbers
    of flaw types; every value above 0 is a defect. Normal images keep the split of `split_csv/1cls.csv` if this file
    is beside the object folder; it must have a row for every image.
    """
    tree = reader.tree
    hints = _visa_hints(reader)
    items = []
    for file in reader.images(tree.find("Data/Images/Normal")):
        relative = file.relative_to(tree.path.parent).as_posix()
        if hints and relative not in hints:
            reader.problems.add(
                tree.path.parent / SPLIT_FILE, f"has no row for {relative}", "expected one for every image"
            )
        items.append(reader.normal_item(file, hints.get(relative, "")))
    label = reader.options.defect or "anomaly"
    anomalies = tree.find("Data/Images/Anomaly")
    for name, folder in reader.select({} if anomalies is None else {label: anomalies}).items():
        expected = tree.path / "Data/Masks/Anomaly"
        items += _masked_items(reader, folder, tree.find("Data/Masks/Anomaly"), name, expected)
    return items


def read_loco(reader: SourceReader) -> list[SourceItem]:
    """Read MVTec LOCO AD: {train,validation,test}/good, test/<type>, ground_truth/<type>/<stem>/*.png.

    The types are `logical_anomalies` and `structural_anomalies`. The masks of an image are united. Their values are
    numbers of defect types, so every value above 0 is a defect. Validation images are used for training.
    """
    items = _normal_items(reader, "")
    for label, folder in reader.select(_defect_folders(reader)).items():
        for file in reader.images(folder):
            masks = reader.tree.find(f"ground_truth/{label}/{file.stem}")
            files = [] if masks is None else [mask for mask in masks.files if reader.is_image(mask)]
            if files:
                items.append(reader.masked_item(file, files, label, rule="any"))
            else:
                expected = f"at least one in {reader.tree.path / 'ground_truth' / label / file.stem}"
                items += reader.handle_missing_mask(file, label, expected)
    return items


def read_mvtec3d(reader: SourceReader) -> list[SourceItem]:
    """Read MVTec 3D-AD: {train,validation,test}/good/rgb, test/<defect>/rgb and test/<defect>/gt.

    The point clouds (xyz) are not read. Validation images are used for training.
    """
    items = _normal_items(reader, "rgb")
    for label, folder in reader.select(_defect_folders(reader)).items():
        images = folder.find("rgb")
        if images is not None:
            items += _masked_items(reader, images, folder.find(_MASKS_3D), label, folder.path / _MASKS_3D)
    for file in reader.tree.all_files():
        if file.parent.name == "xyz":
            reader.reasons[file] = "point cloud"
    return items


def _masked_items(
    reader: SourceReader, images: Folder, masks: Folder | None, label: str, expected: Path
) -> list[SourceItem]:
    items = []
    for file in reader.images(images):
        found = [] if masks is None else reader.mask_index(masks).find(file)
        if found:
            items.append(reader.masked_item(file, found[:1], label, rule="any"))
        else:
            items += reader.handle_missing_mask(file, label, f"{expected / file.stem}.png")
    return items


def _normal_items(reader: SourceReader, subfolder: str) -> list[SourceItem]:
    return [
        reader.normal_item(file, hint)
        for split, hint in _NORMAL_SPLITS.items()
        for file in reader.images(reader.tree.find(f"{split}/{GOOD}/{subfolder}"))
    ]


def _defect_folders(reader: SourceReader) -> dict[str, Folder]:
    test = reader.tree.find("test")
    return {} if test is None else {name: folder for name, folder in test.folders.items() if name != GOOD}


def _visa_hints(reader: SourceReader) -> Mapping[str, str]:
    """Return the split of every image of an object by its path in the data set; empty if there is no split file."""
    path = reader.tree.path
    file = path.parent / SPLIT_FILE
    if not file.is_file():
        return {}
    reader.other_files.append(file)
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for column in ("object", "split", "image"):
        if not rows or column not in rows[0]:
            reader.problems.add(
                file, f"column {column!r} is missing", "expected the columns object, split, label, image, mask"
            )
            return {}
    hints = {}
    for row in rows:
        if row["object"] == path.name:
            if row["split"] not in ("train", "test"):
                reader.problems.add(file, f"{row['image']}: split {row['split']!r}", "expected train or test")
                return {}
            hints[row["image"]] = row["split"]
    return hints
