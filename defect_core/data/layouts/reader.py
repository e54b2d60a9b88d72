"""What all readers of layouts share: the tree of the source, its options, pairing of images and masks, and reasons."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from defect_core.data.layouts.options import LayoutOptions, SourceItem
from defect_core.data.layouts.tree import Folder, name_key
from defect_core.data.mask_sources import MaskFile, MaskSource
from defect_core.data.problems import ProblemLog
from defect_core.data.records import GOOD
from defect_core.errors import InputError

MaskRule = Literal["auto", "any", "half", "inverted"]
MissingMasks = Literal["error", "leave_out", "normal"]
NORMAL_NAMES = ("good", "ok", "normal", "normals", "defect_free", "defect-free", "no_defect", "non_defective", "io")
MASK_ENDINGS = ("_mask", "-mask", "_gt", "_label", "_seg", "_groundtruth", "_ground_truth")
MAX_LISTED = 20
"""Images without a mask that are named one by one per defect type; the others are counted."""


@dataclass
class SourceReader:
    """A source while a layout reads it.

    Attributes:
        tree: its folders and files.
        options: options of the layout.
        problems: collects what is wrong.
        missing_masks: what happens to a defect image without a mask.
        reasons: why files are ignored, for the reasons that a layout knows.
        tables: files that a layout reads beside images and masks.
        other_files: files outside the source that a layout reads.
        without_mask: defect images that are left out because they have no mask.
        notes: what is unusual, one line each.
    """

    tree: Folder
    options: LayoutOptions
    problems: ProblemLog
    missing_masks: MissingMasks = "error"
    reasons: dict[Path, str] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    other_files: list[Path] = field(default_factory=list)
    without_mask: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare what is computed once."""
        self._suffixes = frozenset(suffix.lower() for suffix in self.options.image_suffixes)
        self.nested: dict[str, int] = {}
        self._indexes: dict[Path, MaskIndex] = {}
        self._missing: dict[str, int] = defaultdict(int)

    @property
    def missing_count(self) -> int:
        """Number of defect images without a mask that are a problem."""
        return sum(self._missing.values())

    def adopt(self, trial: "SourceReader") -> None:
        """Take over what another reader of the same source found."""
        for error in trial.problems.problems:
            self.problems.add_error(InputError(error))
        self.reasons |= trial.reasons
        self.tables += trial.tables
        self.other_files += trial.other_files
        self.without_mask += trial.without_mask
        self.notes += trial.notes
        self.nested |= trial.nested
        self._missing |= trial._missing

    def is_image(self, file: Path) -> bool:
        """Return whether a file has one of the image suffixes."""
        return file.suffix.lower() in self._suffixes

    def images(self, folder: Folder | None, skip: Iterable[str] = ()) -> list[Path]:
        """Return the images in a folder and below it, in natural order; none if the folder is None.

        With the option `recursive: false`, images in folders below are a problem.

        Args:
            folder: the folder.
            skip: names of folders that are not entered, such as folders of masks.
        """
        keys = {name_key(name) for name in skip}
        found: list[Path] = []
        waiting = [] if folder is None else [folder]
        while waiting:
            current = waiting.pop()
            here = list(filter(self.is_image, current.files))
            found += here
            if here and current is not folder:
                self.nested[current.relative] = len(here)
            children = [child for child in current.folders.values() if name_key(child.name) not in keys]
            if self.options.recursive:
                waiting += reversed(children)
            else:
                for child in children:
                    self._report_nested(child)
        return found

    def mask_index(self, folder: Folder) -> "MaskIndex":
        """Return the mask files of a folder by name."""
        if folder.path not in self._indexes:
            files = [file for file in folder.files if self.is_image(file) or self._has_mask_suffix(file)]
            self._indexes[folder.path] = MaskIndex(files, self.options.mask_suffix)
        return self._indexes[folder.path]

    def _has_mask_suffix(self, file: Path) -> bool:
        suffix = self.options.mask_suffix
        return suffix is not None and name_key(file.name).endswith(name_key(suffix))

    def _report_nested(self, folder: Folder) -> None:
        count = sum(map(self.is_image, folder.all_files()))
        if count:
            self.problems.add(
                folder.path,
                f"a folder with {count} image(s) inside a folder of images, which the option recursive forbids",
                "expected no such folder, or the option recursive: true",
            )

    def relative(self, file: Path) -> str:
        """Return the POSIX path of a file relative to the source."""
        return file.relative_to(self.tree.path).as_posix()

    def normal_item(self, file: Path, split_hint: str = "", group: str = "") -> SourceItem:
        """Return the item of a normal image."""
        return SourceItem(file, None, GOOD, split_hint, self._group(file, group))

    def defect_item(
        self, file: Path, source: MaskSource, label: str | None, split_hint: str = "", group: str = ""
    ) -> SourceItem:
        """Return the item of a defect image whose empty mask is a problem."""
        return SourceItem(file, source, label, split_hint, self._group(file, group))

    def labelled_item(
        self, file: Path, source: MaskSource, label: str | None, split_hint: str = "", group: str = ""
    ) -> SourceItem:
        """Return the item of an image that is normal if its mask is empty."""
        return SourceItem(file, source, label, split_hint, self._group(file, group), empty_mask_is_normal=True)

    def masked_item(
        self, file: Path, masks: Sequence[Path], label: str, split_hint: str = "", rule: MaskRule | None = None
    ) -> SourceItem:
        """Return the item of a defect image with mask files; with the option `mask_values` they name the defects."""
        return self.defect_item(file, self.mask_file(masks, label, rule), self.label(label), split_hint)

    def mask_file(self, masks: Sequence[Path], label: str, rule: MaskRule | None = None) -> MaskFile:
        """Return the source of the masks in image files, which are united.

        Args:
            masks: the files.
            label: label of the defect type, if the option `mask_values` is not used.
            rule: which pixels are defects, if the layout defines it and the option `mask_rule` does not.
        """
        chosen = self.options.mask_rule if rule is None or self.options.mask_rule != "auto" else rule
        return MaskFile(tuple(masks), label, self.options.mask_values, chosen)

    def label(self, label: str) -> str | None:
        """Return the label of an item with mask files: None if the option `mask_values` names the defect types."""
        return label if self.options.mask_values is None else None

    def handle_missing_mask(self, file: Path, label: str, expected: str, split_hint: str = "") -> list[SourceItem]:
        """Return the normal item of an image without a mask, or record a problem or a reason and return nothing.

        Args:
            file: the image.
            label: label of its defect type.
            expected: where its mask would be.
            split_hint: the split of the image.
        """
        if self.missing_masks == "normal":
            return [self.normal_item(file, split_hint)]
        self.reasons[file] = "defect image without a mask"
        if self.missing_masks == "leave_out":
            self.without_mask.append(file)
            return []
        self._missing[label] += 1
        if self._missing[label] <= MAX_LISTED:
            self.problems.add(file, "has no mask", f"expected {expected}, or missing_masks: leave_out")
        return []

    def describe_nested(self) -> list[str]:
        """Return a line that names the folders inside folders of images; none if there are no such folders."""
        if not self.nested:
            return []
        shown = [f"{name} ({count})" for name, count in list(self.nested.items())[:MAX_LISTED]]
        more = f" and {len(self.nested) - MAX_LISTED} more" if len(self.nested) > MAX_LISTED else ""
        return [f"folders inside folders of images are read too (files): {', '.join(shown)}{more}"]

    def report_unlisted(self) -> None:
        """Add one problem per defect type for the images without a mask that were not named one by one."""
        for label, count in self._missing.items():
            if count > MAX_LISTED:
                self.problems.add(
                    self.tree.path,
                    f"{count - MAX_LISTED} more images of {label!r} have no mask",
                    "expected a mask for every defect image, or missing_masks: leave_out",
                )

    def select(self, folders: dict[str, Folder]) -> dict[str, Folder]:
        """Return the folders of the defect types in the option `defects`, or all; a missing one is a problem."""
        wanted = self.options.defects
        if wanted is None:
            return folders
        keys = {name_key(label) for label in wanted}
        known = {name_key(label) for label in folders}
        for label in wanted:
            if name_key(label) not in known:
                names = ", ".join(folders) or "none"
                self.problems.add(
                    self.tree.path, f"no defect type {label!r} (options.defects)", f"expected some of: {names}"
                )
        for label, folder in folders.items():
            if name_key(label) not in keys:
                self.ignore_all(folder, "defect type that the option defects does not name")
        return {label: folder for label, folder in folders.items() if name_key(label) in keys}

    def ignore_all(self, folder: Folder | None, reason: str) -> None:
        """Record why the images in a folder and below it are ignored."""
        for file in folder.all_files() if folder is not None else ():
            if self.is_image(file):
                self.reasons.setdefault(file, reason)

    def _group(self, file: Path, group: str) -> str:
        if self.options.group is None:
            return group
        match = re.search(self.options.group, self.relative(file))
        if match is None:
            return ""
        return next((value for value in match.groups() if value), match[0])


class MaskIndex:
    """Mask files of one folder by name, compared in Unicode form NFC and without regard to case."""

    def __init__(self, files: Iterable[Path], mask_suffix: str | None) -> None:
        self.mask_suffix = mask_suffix
        self._files: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._files[name_key(file.name if mask_suffix is not None else file.stem)].append(file)

    def find(self, image: Path, same_stem: bool = True) -> list[Path]:
        """Return the masks of an image; several if the mask is ambiguous.

        Args:
            image: the image file.
            same_stem: whether a file with the same stem as the image is its mask.
        """
        if self.mask_suffix is not None:
            names = [image.stem + self.mask_suffix]
        else:
            names = [image.stem + ending for ending in MASK_ENDINGS] + ([image.stem] if same_stem else [])
        for name in names:
            found = [file for file in self._files.get(name_key(name), ()) if file != image]
            if len(found) > 1:
                exact = [file for file in found if name in (file.stem, file.name)]
                found = exact or found
            if found:
                return found
        return []


def sort_items(items: Iterable[SourceItem]) -> list[SourceItem]:
    """Return items with normal images first, then by defect type, each in the given order."""
    ordered = list(items)
    labels: dict[str, int] = {}
    for item in ordered:
        labels.setdefault(item.defect or "", len(labels))
    return sorted(ordered, key=lambda item: (item.defect != GOOD, labels[item.defect or ""]))
