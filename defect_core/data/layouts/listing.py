"""Listing folders of a source, in natural order of the names and without hidden files."""

from pathlib import Path

from defect_core.data.layouts.options import IMAGE_SUFFIXES, LayoutOptions
from defect_core.data.records import natural_key
from defect_core.errors import InputError


def selected_folders(root: Path, folders: dict[str, Path], options: LayoutOptions) -> list[Path]:
    """The folders of the defects that option `defects` asks for, or all."""
    for defect in options.defects or ():
        if defect not in folders:
            there = ", ".join(folders) or "none"
            raise InputError(f"{root}: no folder of defect {defect!r} (options.defects); found {there}")
    return [folder for name, folder in folders.items() if options.defects is None or name in options.defects]


def list_folders(path: Path) -> list[Path]:
    """Folders inside a folder; none where there is no such folder."""
    if not path.is_dir():
        return []
    found = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    return sorted(found, key=lambda child: natural_key(child.name))


def list_files(path: Path) -> list[Path]:
    """Files inside a folder; none where there is no such folder."""
    if not path.is_dir():
        return []
    found = [child for child in path.iterdir() if child.is_file() and not child.name.startswith(".")]
    return sorted(found, key=lambda child: natural_key(child.name))


def list_images(path: Path, options: LayoutOptions) -> list[Path]:
    """Files with one of the suffixes that images may have."""
    suffixes = {suffix.lower() for suffix in options.image_suffixes}
    return [file for file in list_files(path) if file.suffix.lower() in suffixes]


def images_by_stem(path: Path) -> dict[str, Path]:
    """Image files of a folder by their name without suffix."""
    return {file.stem: file for file in list_files(path) if file.suffix.lower() in IMAGE_SUFFIXES}
