"""Reader of source folders: finds the images, their defect types and their masks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defect_core.data.layouts.listing import images_by_stem, list_files, list_folders, list_images, selected_folders
from defect_core.data.layouts.options import LAYOUTS, LayoutOptions, SourceItem, check_options
from defect_core.data.layouts.published import PUBLISHED, detect_published
from defect_core.data.records import GOOD, check_name
from defect_core.errors import InputError

_NORMAL_NAMES = ("good", "ok", "normal", "defect_free")
_MASK_FOLDERS = ("masks", "mask", "ground_truth", "labels", "annotations")
_FOLDER_ONLY = ("good", "subfolder", "mask_suffix", "masks", "strip_prefix")


def read_layout(
    path: Path, product: str, layout: str = "auto", options: LayoutOptions | Mapping[str, Any] | None = None
) -> list[SourceItem]:
    """Return the images of a source folder: normal images first, then by defect type, each in natural order.

    No file is decoded.

    Args:
        path: folder of the product.
        product: its name, for messages.
        layout: `mvtec`: train/good, test/<defect>, test/good, ground_truth/<defect>/<stem>_mask.png (or <stem>.png).
            `visa`, `loco`, `mvtec3d`: as published, see `layouts.published`.
            `folder`: one folder of normal images and one per defect type; masks beside the images or in a parallel
            tree.
            `auto`: the layout that fits.
        options: options of the layout.

    Raises:
        InputError: the folder does not exist, the layout or an option is unknown, no layout fits, a defect type has
            an unusable name, a defect image has no mask, or there are no normal images.
    """
    path, options = Path(path), check_options(options)
    if layout not in LAYOUTS:
        raise InputError(f"{product}: unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if layout == "demo":
        raise InputError(f"{product}: layout demo has no source folder; expected a layout that has one")
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; expected the folder with the images of {product}")
    if layout == "auto":
        layout = detect_layout(path, options)
    if layout != "folder":
        _check_no_folder_options(layout, options)
    read = {"mvtec": _read_mvtec, "folder": _read_folder, **PUBLISHED}[layout]
    items = read(path, options)
    defects = {item.defect for item in items}
    if GOOD not in defects:
        raise InputError(f"{path}: no normal images found; expected some in {_normal_location(layout, options)}")
    if not any(item.defect != GOOD for item in items):
        raise InputError(f"{path}: no defect images found; expected one folder per defect type")
    for defect in defects:
        check_name(defect, f"{path}: defect folder")
    return items


def detect_layout(path: Path, options: LayoutOptions) -> str:
    """Return the layout that `auto` selects for a folder.

    Args:
        path: folder of the product.
        options: options of the layout `folder`.

    Raises:
        InputError: no layout fits.
    """
    published = detect_published(path)
    if published:
        return published
    if (path / "train" / GOOD).is_dir() and (path / "test").is_dir():
        return "mvtec"
    if _normal_folder(path, options) is not None:
        return "folder"
    raise InputError(
        f"{path}: layout not recognised; expected mvtec (train/good, test/<defect>, ground_truth/<defect>), "
        "folder (a folder of normal images, option good, and one per defect) or demo"
    )


def _check_no_folder_options(layout: str, options: LayoutOptions) -> None:
    for key in _FOLDER_ONLY:
        if getattr(options, key) != LayoutOptions.model_fields[key].default:
            raise InputError(f"options.{key}: not an option of layout {layout}; expected defects or image_suffixes")


def _read_mvtec(root: Path, options: LayoutOptions) -> list[SourceItem]:
    items = []
    for split in ("train", "test"):
        for folder in list_folders(root / split):
            if folder.name == GOOD:
                items += [SourceItem(GOOD, file, None, split) for file in list_images(folder, options)]
    folders = {folder.name: folder for folder in list_folders(root / "test") if folder.name != GOOD}
    for folder in selected_folders(root, folders, options):
        masks = images_by_stem(root / "ground_truth" / folder.name)
        for file in list_images(folder, options):
            mask = masks.get(f"{file.stem}_mask") or masks.get(file.stem)
            if mask is None:
                expected = f"ground_truth/{folder.name}/{file.stem}_mask.png"
                raise InputError(f"{file}: has no mask; expected {root / expected}")
            items.append(SourceItem(folder.name, file, mask, ""))
    return items


def _read_folder(root: Path, options: LayoutOptions) -> list[SourceItem]:
    normal = _normal_folder(root, options)
    if normal is None:
        raise InputError(f"{root}: no folder of normal images; expected {_normal_location('folder', options)}")
    parallel = _parallel_folder(root, options)
    folders = [
        folder for folder in list_folders(root) if folder not in (normal, parallel) and folder.name != options.masks
    ]
    by_defect = {folder.name.removeprefix(options.strip_prefix): folder for folder in folders}
    if GOOD in by_defect:
        raise InputError(
            f"{by_defect[GOOD]}: would be a defect type named good beside {normal.name}; "
            "expected one folder of normal images"
        )
    items: list[SourceItem] = []
    for folder in [normal, *selected_folders(root, by_defect, options)]:
        defect = GOOD if folder == normal else folder.name.removeprefix(options.strip_prefix)
        location = folder / options.subfolder
        if parallel is None:
            images, masks = _pair_files(location, options)
        else:
            images = list_images(location, options)
            masks = _parallel_masks(root, folder, images, options, parallel)
        for file in images:
            mask = None if defect == GOOD else masks.get(file)
            if mask is None and defect != GOOD:
                raise InputError(f"{file}: has no mask; expected {_mask_location(file, folder, options, parallel)}")
            items.append(SourceItem(defect, file, mask, ""))
    return items


def _pair_files(location: Path, options: LayoutOptions) -> tuple[list[Path], dict[Path, Path]]:
    """Return the images of a folder, and the masks beside them by image."""
    files = list_files(location)
    if options.mask_suffix is not None:
        suffix = options.mask_suffix
        masks = {file.name.removesuffix(suffix): file for file in files if file.name.endswith(suffix)}
        images = [file for file in list_images(location, options) if not file.name.endswith(suffix)]
        return images, {file: masks[file.stem] for file in images if file.stem in masks}
    masked = {file.stem.removesuffix("_mask"): file for file in files if file.stem.endswith("_mask")}
    images = [file for file in list_images(location, options) if not file.stem.endswith("_mask")]
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    for stem, group in by_stem.items():
        lossless = [file for file in group if file.suffix.lower() == ".png"]
        if len(group) == 2 and len(lossless) == 1 and stem not in masked:
            masked[stem] = lossless[0]
        elif len(group) > 1:
            names = " and ".join(file.name for file in group)
            raise InputError(f"{location}: {names}: the mask is ambiguous; expected the option mask_suffix")
    used = set(masked.values())
    images = [file for file in images if file not in used]
    return images, {file: masked[file.stem] for file in images if file.stem in masked}


def _parallel_masks(
    root: Path, folder: Path, images: list[Path], options: LayoutOptions, parallel: Path
) -> dict[Path, Path]:
    """Return the masks in a parallel tree, or in a folder of its name inside the class folder, by image."""
    inside = folder / parallel.relative_to(root)
    locations = [parallel / folder.name / options.subfolder, parallel / folder.name, inside]
    masks: dict[Path, Path] = {}
    for location in reversed(locations):
        files = {file.name: file for file in list_files(location)}
        stems = images_by_stem(location)
        for image in images:
            if options.mask_suffix is not None:
                mask = files.get(image.stem + options.mask_suffix)
            else:
                mask = stems.get(f"{image.stem}_mask") or stems.get(image.stem)
            if mask is not None:
                masks[image] = mask
    return masks


def _parallel_folder(root: Path, options: LayoutOptions) -> Path | None:
    if options.masks == "beside":
        return None
    if options.masks != "auto":
        return root / options.masks
    return next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)


def _normal_folder(root: Path, options: LayoutOptions) -> Path | None:
    if options.good is not None:
        return root / options.good if (root / options.good).is_dir() else None
    for folder in list_folders(root):
        if folder.name.removeprefix(options.strip_prefix).lower() in _NORMAL_NAMES:
            return folder
    return None


def _normal_location(layout: str, options: LayoutOptions) -> str:
    if layout != "folder":
        return {"visa": "Data/Images/Normal", "mvtec3d": "train/good/rgb"}.get(layout, "train/good")
    return options.good or f"a folder named {', '.join(_NORMAL_NAMES)}, or the folder of the option good"


def _mask_location(file: Path, folder: Path, options: LayoutOptions, parallel: Path | None) -> str:
    ending = options.mask_suffix or "_mask.png"
    if parallel is not None:
        return f"{parallel / folder.name}/{file.stem}{ending}"
    return f"{file.stem}{ending} beside it, or the option masks or mask_suffix"
