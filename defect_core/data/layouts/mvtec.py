"""MVTec AD and the data sets with the same folders: BTAD, MPDD and MVTec AD 2."""

from pathlib import Path

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import NORMAL_NAMES, SourceReader
from defect_core.data.layouts.tree import Folder, name_key

SPLITS = {
    "train": "train",
    "validation": "train",  # normal images outside the published test set
    "valid": "train",
    "val": "train",
    "test": "test",
    "test_public": "test",
}
"""Folder names of the splits, and the split they stand for."""
MASK_FOLDERS = ("ground_truth", "groundtruth", "masks", "mask")
_PRIVATE = ("test_private", "test_private_mixed")


def detect_mvtec(reader: SourceReader) -> str:
    """Return `mvtec_ad_2`, `btad` or `mvtec` if a source has the folders of this data set, otherwise an empty text."""
    train = _normal_folder(reader, reader.tree.find("train"))
    if train is None or not any(reader.tree.find(name) for name in ("test", "test_public")):
        return ""
    if reader.tree.find("test_public") is not None:
        return "mvtec_ad_2"
    return "btad" if train.name.lower() == "ok" and reader.tree.find("test/ko") is not None else "mvtec"


def read_mvtec(reader: SourceReader) -> list[SourceItem]:
    """Read <split>/<normal> and <split>/<defect> with ground_truth/<defect>/<stem>_mask.png (or <stem>.png).

    The splits are train, validation, test and test_public. The folder of the normal images is named good, ok, normal
    or as the option `good` says. Masks may also be in <split>/ground_truth/<defect>. Normal images keep their split.
    Defect images keep it if train and test both have defects.
    """
    items: list[SourceItem] = []
    for split, folder in _split_folders(reader):
        normal = _normal_folder(reader, folder)
        items += [reader.normal_item(file, SPLITS[split]) for file in reader.images(normal)]
        if folder.files:
            for file in filter(reader.is_image, folder.files):
                reader.reasons[file] = f"beside the class folders of {folder.relative}"
    folders = _defect_folders(reader)
    labels: dict[str, Folder] = {}
    for classes in folders.values():
        for label, folder in classes.items():
            labels.setdefault(label, folder)
    selected = reader.select(labels)
    both_sides = len({SPLITS[split] for split, classes in folders.items() if classes}) > 1
    for label in selected:
        for split, classes in folders.items():
            if label in classes:
                items += _defect_items(reader, split, classes[label], SPLITS[split] if both_sides else "")
    for name in _PRIVATE:
        reader.ignore_all(reader.tree.find(name), "test image without a public annotation")
    return items


def find_masks_in(reader: SourceReader, image: Path, base: Folder, roots: list[Folder]) -> list[Path]:
    """Return the masks of an image in parallel folders, which repeat the folders of the images or are flat.

    Args:
        reader: the source.
        image: an image in `base` or below it.
        base: folder of a defect type.
        roots: folders of its masks; the first with a mask counts.
    """
    below = image.parent.relative_to(base.path).parts
    for root in roots:
        for place in (root.find("/".join(below)), root) if below else (root,):
            masks = reader.mask_index(place).find(image) if place is not None else []
            if masks:
                return masks
    return []


def _defect_items(reader: SourceReader, split: str, folder: Folder, hint: str) -> list[SourceItem]:
    label, items = folder.name, []
    places = [place for place in (reader.tree.find(f"{name}/{label}") for name in _mask_places(split)) if place]
    for file in reader.images(folder):
        masks = find_masks_in(reader, file, folder, places)
        if masks:
            items.append(reader.masked_item(file, masks[:1], label, hint))
        else:
            ground_truth = f"{split}/ground_truth" if split == "test_public" else "ground_truth"
            expected = reader.tree.path / f"{ground_truth}/{label}/{file.stem}_mask.png"
            items += reader.handle_missing_mask(file, label, str(expected), hint)
    return items


def _mask_places(split: str) -> list[str]:
    places: list[str] = list(MASK_FOLDERS)
    for name in (split,) if split else ("test", "test_public"):
        places += [f"{folder}/{name}" for folder in MASK_FOLDERS] if split else []
        places += [f"{name}/{folder}" for folder in MASK_FOLDERS]
    return places


def _split_folders(reader: SourceReader) -> list[tuple[str, Folder]]:
    return [(name, folder) for name in SPLITS if (folder := reader.tree.find(name)) is not None]


def _normal_folder(reader: SourceReader, folder: Folder | None) -> Folder | None:
    if folder is None:
        return None
    if reader.options.good is not None:
        return folder.find(reader.options.good)
    return next((found for name in NORMAL_NAMES if (found := folder.find(name)) is not None), None)


def _defect_folders(reader: SourceReader) -> dict[str, dict[str, Folder]]:
    """Return the folders of the defect types by split and name."""
    found: dict[str, dict[str, Folder]] = {}
    for split, folder in _split_folders(reader):
        normal = _normal_folder(reader, folder)
        found[split] = {
            name: child
            for name, child in folder.folders.items()
            if child is not normal and name_key(name) not in MASK_FOLDERS
        }
    return found
