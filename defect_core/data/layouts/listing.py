"""Lists of files and folders of a source, in natural order of the names and without hidden files."""

from pathlib import Path

from defect_core.data.layouts.options import IMAGE_SUFFIXES, LayoutOptions
from defect_core.data.records import natural_key
from defect_core.errors import InputError


def selected_folders(root: Path, folders: dict[str, Path], options: LayoutOptions) -> list[Path]:
    """Return the folders of the defect types in the option `defects`, or all.

    Args:
        root: folder of the source, for the message.
        folders: folders by defect type.
        options: options of the layout.

    Raises:
        InputError: a defect type has no folder.
    """
    for defect in options.defects or ():
        if defect not in folders:
            names = ", ".join(folders) or "none"
            raise InputError(f"{root}: no folder of defect {defect!r} (options.defects); found {names}")
    return [folder for name, folder in folders.items() if options.defects is None or name in options.defects]


def list_folders(path: Path) -> list[Path]:
    """Return the folders in a folder; none if the folder does not exist."""
    if not path.is_dir():
        return []
    folders = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    return sorted(folders, key=lambda child: natural_key(child.name))


def list_files(path: Path) -> list[Path]:
    """Return the files in a folder; none if the folder does not exist."""
    if not path.is_dir():
        return []
    files = [child for child in path.iterdir() if child.is_file() and not child.name.startswith(".")]
    return sorted(files, key=lambda child: natural_key(child.name))


def list_images(path: Path, options: LayoutOptions) -> list[Path]:
    """Return the files with one of the image suffixes in `options`."""
    suffixes = {suffix.lower() for suffix in options.image_suffixes}
    return [file for file in list_files(path) if file.suffix.lower() in suffixes]


def images_by_stem(path: Path) -> dict[str, Path]:
    """Return the image files of a folder by their name without suffix."""
    return {file.stem: file for file in list_files(path) if file.suffix.lower() in IMAGE_SUFFIXES}
