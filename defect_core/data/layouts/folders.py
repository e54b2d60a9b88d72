"""The layout `folder`: one folder of normal images and one per defect type, with masks in any usual place."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import MASK_ENDINGS, NORMAL_NAMES, MaskIndex, SourceReader
from defect_core.data.layouts.tree import Folder, name_key
from defect_core.data.records import GOOD

MASK_FOLDERS = ("masks", "mask", "ground_truth", "groundtruth", "gt", "labels", "label", "annotations", "seg")
DEFECT_NAMES = (
    "ng",
    "ko",
    "nok",
    "bad",
    "defect",
    "defects",
    "defective",
    "abnormal",
    "anomaly",
    "anomalies",
    "reject",
)
"""Folders that name no defect type: their subfolders are the types, unless these are days or numbers."""
_IMAGE_FOLDERS = ("images", "image", "img", "imgs", "rgb")
_DAY = re.compile(r"[\W_\d]*|(day|night|shift|batch|lot|run|camera|cam|line)[\W_\d]*", re.IGNORECASE)


@dataclass(frozen=True)
class _Class:
    label: str
    folder: Folder
    skip: frozenset[str] = frozenset()


def detect_folder(reader: SourceReader) -> bool:
    """Return whether a source has a folder of normal images."""
    return find_normal_folder(reader) is not None


def read_folder(reader: SourceReader) -> list[SourceItem]:
    """Read a folder of normal images and one per defect type; masks are beside the images or in a folder of masks.

    A folder named `NG`, `bad`, `defect` or similar holds one folder per defect type; without such folders it is the
    defect type. Masks are searched in a folder of masks beside the class folders, then in one inside the class folder,
    then beside the image. Masks of normal images are ignored.
    """
    normal = find_normal_folder(reader)
    if normal is None:
        expected = reader.options.good or f"a folder named {', '.join(NORMAL_NAMES[:4])}, or the option good"
        reader.problems.add(reader.tree.path, "no folder of normal images", f"expected {expected}")
        return []
    parallel = _parallel_folders(reader)
    classes = _defect_classes(reader, normal, parallel)
    items: list[SourceItem] = []
    pairing = _Pairing(reader, parallel)
    images = pairing.images_of(_Class(GOOD, normal))
    items += [reader.normal_item(file) for file in images]
    for file in pairing.claimed:
        reader.reasons.setdefault(file, "mask of a normal image")
    defects = {one.folder.path: (one, pairing.images_of(one)) for one in classes}
    pairing.count_stems([file for _, files in defects.values() for file in files])
    for one, files in defects.values():
        for file in files:
            mask = pairing.find_mask(file, one)
            if mask is not None:
                items.append(reader.masked_item(file, [mask], one.label))
            else:
                items += reader.handle_missing_mask(file, one.label, pairing.expected(file, one))
    for file in filter(reader.is_image, reader.tree.files):
        reader.reasons.setdefault(file, "beside the class folders")
    return items


def find_normal_folder(reader: SourceReader) -> Folder | None:
    """Return the folder of the normal images, or None."""
    if reader.options.good is not None:
        return reader.tree.find(reader.options.good)
    prefix = reader.options.strip_prefix
    for name in NORMAL_NAMES:
        for folder in reader.tree.folders.values():
            if name_key(folder.name.removeprefix(prefix)) == name:
                return folder
    return None


class _Pairing:
    """Finds the images of class folders and their masks."""

    def __init__(self, reader: SourceReader, parallel: list[Folder]) -> None:
        self.reader = reader
        self.parallel = parallel
        self.mask_names = {name_key(name) for name in MASK_FOLDERS} if reader.options.masks == "auto" else set()
        if reader.options.masks not in ("auto", "beside"):
            self.mask_names.add(name_key(Path(reader.options.masks).name))
        self.claimed: dict[Path, Path] = {}
        self._beside: dict[Path, Path] = {}
        self._stems: Counter[str] = Counter()

    def images_of(self, one: _Class) -> list[Path]:
        """Return the images of a class, without the masks beside them."""
        location = one.folder
        if self.reader.options.subfolder:
            found = one.folder.find(self.reader.options.subfolder)
            self.reader.ignore_all(one.folder, f"not in the folder {self.reader.options.subfolder} (options.subfolder)")
            if found is None:
                self.reader.problems.add(
                    one.folder.path,
                    f"has no folder {self.reader.options.subfolder!r}",
                    "expected it (options.subfolder) in every class folder",
                )
                return []
            location = found
        files = self.reader.images(location, skip=self.mask_names | one.skip)
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for file in files:
            by_folder[file.parent].append(file)
        masks: set[Path] = set()
        for folder, group in by_folder.items():
            masks |= self._pair_beside(folder, group)
        return [file for file in files if file not in masks]

    def _pair_beside(self, folder: Path, files: list[Path]) -> set[Path]:
        """Record the masks among the images of one folder, and return them."""
        suffix = self.reader.options.mask_suffix
        marked = {file for file in files if _is_marked(file, suffix)}
        images = [file for file in files if file not in marked]
        index = MaskIndex(marked, suffix)
        by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in images:
            by_stem[name_key(file.stem)].append(file)
            found = index.find(file, same_stem=False)
            if found:
                self._claim(file, found[0])
        unpaired = marked - set(self.claimed)
        for file in unpaired:
            self.reader.reasons[file] = "mask without an image"
        for group in by_stem.values():
            lossless = [file for file in group if file.suffix.lower() == ".png"]
            masked = any(file in self._beside for file in group)
            if suffix is None and len(group) == 2 and len(lossless) == 1 and not masked:
                image = next(file for file in group if file not in lossless)
                self._claim(image, lossless[0])
                marked.add(lossless[0])
            elif len({file.stem for file in group}) < len(group) and suffix is None:
                names = " and ".join(file.name for file in group)
                self.reader.problems.add(folder, f"{names}: the mask is ambiguous", "expected the option mask_suffix")
        return marked

    def _claim(self, image: Path, mask: Path) -> None:
        self._beside[image] = mask
        self.claimed[mask] = image

    def count_stems(self, files: list[Path]) -> None:
        """Count how many defect images have the same stem, so that a flat folder of masks is used only if unique."""
        self._stems.update(name_key(file.stem) for file in files)

    def find_mask(self, image: Path, one: _Class) -> Path | None:
        """Return the mask of a defect image, or None."""
        reader = self.reader
        below = list(image.parent.relative_to(one.folder.path).parts)
        short = [part for part in below if name_key(part) not in _IMAGE_FOLDERS and part != reader.options.subfolder]
        class_path = "/".join(one.folder.parts)
        places: list[Folder | None] = []
        for root in self.parallel:
            for start in (root.find(class_path), root.find(one.folder.name), root.find(one.label)):
                places += [start.find("/".join(parts)) for parts in (below, short, []) if start is not None]
            if self._stems[name_key(image.stem)] == 1:
                places.append(root)
        for depth in range(len(below), -1, -1):
            start = one.folder.find("/".join(below[:depth]))
            for child in start.folders.values() if start is not None else ():
                if name_key(child.name) in self.mask_names:
                    places += [child.find("/".join(below[depth:])), child.find("/".join(short)), child]
        for place in places:
            masks = reader.mask_index(place).find(image) if place is not None else []
            if len(masks) > 1:
                names = " and ".join(mask.name for mask in masks)
                reader.problems.add(
                    image, f"its mask is ambiguous ({names})", "expected one, or the option mask_suffix"
                )
            if masks:
                self._note_second(image, masks[0])
                return masks[0]
        return self._beside.get(image)

    def _note_second(self, image: Path, mask: Path) -> None:
        if image in self._beside and self._beside[image] != mask:
            self.reader.reasons[self._beside[image]] = f"second mask of its image; {self.reader.relative(mask)} is used"

    def expected(self, image: Path, one: _Class) -> str:
        """Return where the mask of an image is expected, for the message."""
        ending = self.reader.options.mask_suffix or "_mask.png"
        if self.parallel:
            return f"{self.parallel[0].path / one.folder.name}/{image.stem}{ending}"
        return f"{image.stem}{ending} beside it, or the option masks or mask_suffix"


def _is_marked(file: Path, suffix: str | None) -> bool:
    if suffix is not None:
        return name_key(file.name).endswith(name_key(suffix)) and name_key(file.name) != name_key(suffix)
    return name_key(file.stem).endswith(MASK_ENDINGS)


def _parallel_folders(reader: SourceReader) -> list[Folder]:
    masks = reader.options.masks
    if masks == "beside":
        return []
    names = MASK_FOLDERS if masks == "auto" else (masks,)
    return [folder for name in names if (folder := reader.tree.find(name)) is not None]


def _defect_classes(reader: SourceReader, normal: Folder, parallel: list[Folder]) -> list[_Class]:
    top = {parts[0] for parts in (normal.parts, *(folder.parts for folder in parallel))}
    if reader.options.masks not in ("auto", "beside"):
        top.add(reader.options.masks)
    found: dict[str, _Class] = {}
    types_in = reader.options.types_in
    for folder in reader.tree.folders.values():
        if name_key(folder.name) in {name_key(name) for name in top}:
            continue
        if not any(map(reader.is_image, folder.all_files())):
            continue
        for one in _split_types(reader, folder):
            if one.label == GOOD:
                reader.problems.add(
                    one.folder.path,
                    f"would be a defect type named good beside {normal.name}",
                    "expected one folder of normal images",
                )
            elif one.label in found:
                reader.problems.add(
                    one.folder.path,
                    f"is a second folder of the defect type {one.label!r}",
                    f"expected one, found {found[one.label].folder.path} too",
                )
            else:
                found[one.label] = one
    if types_in is not None and reader.tree.find(types_in) is None:
        reader.problems.add(
            reader.tree.path, f"has no folder {types_in!r} (options.types_in)", "expected a folder of it"
        )
    selected = reader.select({label: one.folder for label, one in found.items()})
    return [found[label] for label in selected]


def _split_types(reader: SourceReader, folder: Folder) -> list[_Class]:
    """Return the defect types in a top folder: one, or its subfolders if its name is not a type but `NG` or similar."""
    types_in = reader.options.types_in
    base = folder
    if types_in is not None:
        found = reader.tree.find(types_in)
        if found is None or found.parts[0] != folder.name:
            return [_single(reader, folder)]
        base = found
    elif name_key(folder.name) not in DEFECT_NAMES:
        return [_single(reader, folder)]
    children = [
        child
        for name, child in base.folders.items()
        if name_key(name) not in (*MASK_FOLDERS, *_IMAGE_FOLDERS) and any(map(reader.is_image, child.all_files()))
    ]
    if not children or (types_in is None and all(_DAY.fullmatch(child.name) for child in children)):
        return [_single(reader, folder)]
    classes = [_single(reader, child) for child in children]
    if any(map(reader.is_image, base.files)):
        classes.append(_Class(base.name, base, frozenset(name_key(child.name) for child in children)))
    return classes


def _single(reader: SourceReader, folder: Folder) -> _Class:
    return _Class(folder.name.removeprefix(reader.options.strip_prefix), folder)
