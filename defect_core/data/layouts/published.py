"""Layouts of published data sets other than MVTec AD: VisA, MVTec LOCO AD and MVTec 3D-AD.

Each function reads the folder of one product.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from defect_core.data.layouts.listing import images_by_stem, list_files, list_folders, list_images, selected_folders
from defect_core.data.layouts.options import LayoutOptions, SourceItem
from defect_core.data.records import GOOD
from defect_core.errors import InputError

SPLIT_FILE = "split_csv/1cls.csv"
# The validation images are normal and not part of the published test set, so they are used for training.
_NORMAL_SPLITS = {"train": "train", "validation": "train", "test": "test"}


def detect_published(path: Path) -> str:
    """Return `visa`, `mvtec3d` or `loco` if the folder of a product has this layout, otherwise an empty string."""
    if (path / "Data/Images/Normal").is_dir():
        return "visa"
    if (path / "train" / GOOD / "rgb").is_dir():
        return "mvtec3d"
    mask_folders = list_folders(path / "ground_truth")
    return "loco" if any(map(list_folders, mask_folders)) and (path / "train" / GOOD).is_dir() else ""


def read_visa(path: Path, options: LayoutOptions) -> list[SourceItem]:
    """Read VisA: Data/Images/Normal, Data/Images/Anomaly and Data/Masks/Anomaly of one object.

    VisA has no defect types, so all defects are `anomaly`. Its mask values are numbers of flaw types; every value
    above 0 is a defect. Normal images keep the split of `split_csv/1cls.csv` if this file is beside the object folder.

    Args:
        path: folder of the object.
        options: options of the layout.

    Raises:
        InputError: a mask is missing, or the split file has other columns or no row for an image.
    """
    hints = _visa_hints(path)
    images, masks = path / "Data/Images", images_by_stem(path / "Data/Masks/Anomaly")
    items = []
    for file in list_images(images / "Normal", options):
        relative = file.relative_to(path.parent).as_posix()
        if hints and relative not in hints:
            raise InputError(f"{path.parent / SPLIT_FILE}: has no row for {relative}; expected one for every image")
        items.append(SourceItem(GOOD, file, None, hints.get(relative, "")))
    for folder in selected_folders(path, {"anomaly": images / "Anomaly"}, options):
        for file in list_images(folder, options):
            if file.stem not in masks:
                raise InputError(f"{file}: has no mask; expected {path / 'Data/Masks/Anomaly' / file.stem}.png")
            items.append(SourceItem("anomaly", file, masks[file.stem], "", any_value=True))
    return items


def read_loco(path: Path, options: LayoutOptions) -> list[SourceItem]:
    """Read MVTec LOCO AD: {train,validation,test}/good, test/<type>, ground_truth/<type>/<stem>/*.png.

    The types are `logical_anomalies` and `structural_anomalies`. The masks of an image are united. Their values are
    numbers of defect types, so every value above 0 is a defect. Validation images are used for training.

    Args:
        path: folder of the product.
        options: options of the layout.

    Raises:
        InputError: an image has no mask.
    """
    items = _normal_items(path, options, "")
    folders = {folder.name: folder for folder in list_folders(path / "test") if folder.name != GOOD}
    for folder in selected_folders(path, folders, options):
        for file in list_images(folder, options):
            mask_folder = path / "ground_truth" / folder.name / file.stem
            masks = [mask for mask in list_files(mask_folder) if mask.suffix.lower() == ".png"]
            if not masks:
                raise InputError(f"{file}: has no mask; expected at least one in {mask_folder}")
            items.append(SourceItem(folder.name, file, masks[0], "", tuple(masks[1:]), any_value=True))
    return items


def read_mvtec3d(path: Path, options: LayoutOptions) -> list[SourceItem]:
    """Read MVTec 3D-AD: {train,validation,test}/good/rgb, test/<defect>/rgb and test/<defect>/gt.

    The point clouds (xyz) are not read. Validation images are used for training.

    Args:
        path: folder of the product.
        options: options of the layout.

    Raises:
        InputError: an image has no mask.
    """
    items = _normal_items(path, options, "rgb")
    folders = {folder.name: folder for folder in list_folders(path / "test") if folder.name != GOOD}
    for folder in selected_folders(path, folders, options):
        masks = images_by_stem(folder / "gt")
        for file in list_images(folder / "rgb", options):
            if file.stem not in masks:
                raise InputError(f"{file}: has no mask; expected {folder / 'gt' / file.stem}.png")
            items.append(SourceItem(folder.name, file, masks[file.stem], "", any_value=True))
    return items


PUBLISHED: Mapping[str, Callable[[Path, LayoutOptions], list[SourceItem]]] = {
    "visa": read_visa,
    "loco": read_loco,
    "mvtec3d": read_mvtec3d,
}


def _normal_items(path: Path, options: LayoutOptions, subfolder: str) -> list[SourceItem]:
    return [
        SourceItem(GOOD, file, None, hint)
        for split, hint in _NORMAL_SPLITS.items()
        for file in list_images(path / split / GOOD / subfolder, options)
    ]


def _visa_hints(path: Path) -> dict[str, str]:
    """Return the split of every image of an object by its path in the data set; empty if there is no split file."""
    file = path.parent / SPLIT_FILE
    if not file.is_file():
        return {}
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for column in ("object", "split", "image"):
        if not rows or column not in rows[0]:
            raise InputError(f"{file}: column {column!r} is missing; expected object, split, label, image, mask")
    hints = {}
    for row in rows:
        if row["object"] == path.name:
            if row["split"] not in ("train", "test"):
                raise InputError(f"{file}: {row['image']}: split {row['split']!r}; expected train or test")
            hints[row["image"]] = row["split"]
    return hints
