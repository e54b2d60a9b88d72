"""Layouts of published data sets beside MVTec AD: VisA, MVTec LOCO and MVTec 3D-AD, one product's folder each."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from defect_core.data.layouts.listing import images_by_stem, list_files, list_folders, list_images, selected_folders
from defect_core.data.layouts.options import LayoutOptions, SourceItem
from defect_core.data.records import GOOD
from defect_core.errors import InputError

SPLIT_FILE = "split_csv/1cls.csv"
_GOOD_SPLITS = {
    "train": "train",
    "validation": "train",
    "test": "test",
}  # validation images are good, and nobody's test


def recognise_published(path: Path) -> str:
    """`visa`, `mvtec3d` or `loco` where a product's folder is one of these, else empty."""
    if (path / "Data/Images/Normal").is_dir():
        return "visa"
    if (path / "train" / GOOD / "rgb").is_dir():
        return "mvtec3d"
    truth = list_folders(path / "ground_truth")
    return "loco" if any(list_folders(folder) for folder in truth) and (path / "train" / GOOD).is_dir() else ""


def read_visa(path: Path, options: LayoutOptions) -> list[SourceItem]:
    """Data/Images/Normal, Data/Images/Anomaly and Data/Masks/Anomaly of one object.

    VisA does not part defects into types: all are `anomaly`. Its masks number kinds of flaws; every value above 0
    counts. Where the data set's `split_csv/1cls.csv` lies beside the object's folder, good images keep its split.

    Raises:
        InputError: a mask is missing, or the split file has other columns or does not know an image.
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
    """train/good, validation/good, test/good, test/<kind>; ground_truth/<kind>/<stem>/*.png, several masks per image.

    The kinds are `logical_anomalies` and `structural_anomalies`. The masks of an image are united; their values say
    what the defect is, so every value above 0 counts. Validation images train, like train/good.

    Raises:
        InputError: an image has no mask.
    """
    items = _good_items(path, options, "")
    folders = {folder.name: folder for folder in list_folders(path / "test") if folder.name != GOOD}
    for folder in selected_folders(path, folders, options):
        for file in list_images(folder, options):
            place = path / "ground_truth" / folder.name / file.stem
            masks = [mask for mask in list_files(place) if mask.suffix.lower() == ".png"]
            if not masks:
                raise InputError(f"{file}: has no mask; expected at least one in {place}")
            items.append(SourceItem(folder.name, file, masks[0], "", tuple(masks[1:]), any_value=True))
    return items


def read_mvtec3d(path: Path, options: LayoutOptions) -> list[SourceItem]:
    """{train,validation,test}/good/rgb, test/<defect>/rgb and test/<defect>/gt; the point clouds (xyz) are not read.

    Validation images train, like train/good.

    Raises:
        InputError: an image has no mask.
    """
    items = _good_items(path, options, "rgb")
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


def _good_items(path: Path, options: LayoutOptions, inside: str) -> list[SourceItem]:
    return [
        SourceItem(GOOD, file, None, hint)
        for split, hint in _GOOD_SPLITS.items()
        for file in list_images(path / split / GOOD / inside, options)
    ]


def _visa_hints(path: Path) -> dict[str, str]:
    """Split of every image of an object, by its path below the data set's folder; empty without a split file."""
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
