"""Reading a source folder: which files are images, of which defect, with which mask."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defect_core.data.layouts.listing import images_by_stem, list_files, list_folders, list_images, selected_folders
from defect_core.data.layouts.options import LAYOUTS, LayoutOptions, SourceItem, check_options
from defect_core.data.layouts.published import PUBLISHED, recognise_published
from defect_core.data.records import GOOD, check_name
from defect_core.errors import InputError

_GOOD_NAMES = ("good", "ok", "normal", "defect_free")
_MASK_FOLDERS = ("masks", "mask", "ground_truth", "labels", "annotations")
_FOLDER_ONLY = ("good", "subfolder", "mask_suffix", "masks", "strip_prefix")


def read_layout(
    path: Path, product: str, layout: str = "auto", options: LayoutOptions | Mapping[str, Any] | None = None
) -> list[SourceItem]:
    """List the images of a source folder, good ones first, then by defect, each in natural order of its name.

    `mvtec`: train/good, test/<defect>, test/good, ground_truth/<defect>/<stem>_mask.png (or <stem>.png).
    `visa`, `loco`, `mvtec3d`: as those data sets are published, see `published`.
    `folder`: one folder of good images and one per defect, masks beside the images or in a parallel tree.
    `auto`: whichever of them fits. Nothing is decoded here.

    Raises:
        InputError: no such folder, an unknown layout or option, nothing recognisable, an unusable defect name, an
            image of a defect without a mask, or no good images.
    """
    path, options = Path(path), check_options(options)
    if layout not in LAYOUTS:
        raise InputError(f"{product}: unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if layout == "demo":
        raise InputError(f"{product}: layout demo has no source folder; expected a layout that has one")
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; expected the folder with the images of {product}")
    if layout == "auto":
        layout = recognise(path, options)
    if layout != "folder":
        _refuse_folder_options(layout, options)
    read = {"mvtec": _read_mvtec, "folder": _read_folder, **PUBLISHED}[layout]
    items = read(path, options)
    found = {item.defect for item in items}
    if GOOD not in found:
        raise InputError(f"{path}: no good images found; expected some in {_good_place(layout, options)}")
    if not any(item.defect != GOOD for item in items):
        raise InputError(f"{path}: no defect images found; expected one folder per defect type")
    for defect in found:
        check_name(defect, f"{path}: defect folder")
    return items


def recognise(path: Path, options: LayoutOptions) -> str:
    """The layout that `auto` means for this folder; InputError when none fits."""
    published = recognise_published(path)
    if published:
        return published
    if (path / "train" / GOOD).is_dir() and (path / "test").is_dir():
        return "mvtec"
    if _good_folder(path, options) is not None:
        return "folder"
    raise InputError(
        f"{path}: layout not recognised; expected mvtec (train/good, test/<defect>, ground_truth/<defect>), "
        "folder (a folder of good images, option good, and one per defect) or demo"
    )


def _refuse_folder_options(layout: str, options: LayoutOptions) -> None:
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
    good = _good_folder(root, options)
    if good is None:
        raise InputError(f"{root}: no folder of good images; expected {_good_place('folder', options)}")
    parallel = _parallel_folder(root, options)
    folders = [
        folder for folder in list_folders(root) if folder not in (good, parallel) and folder.name != options.masks
    ]
    named = {folder.name.removeprefix(options.strip_prefix): folder for folder in folders}
    if GOOD in named:
        raise InputError(f"{named[GOOD]}: would be named good beside {good.name}; expected one folder of good images")
    items: list[SourceItem] = []
    for folder in [good, *selected_folders(root, named, options)]:
        defect = GOOD if folder == good else folder.name.removeprefix(options.strip_prefix)
        place = folder / options.subfolder
        if parallel is None:
            images, masks = _pair(place, options)
        else:
            images = list_images(place, options)
            masks = _parallel_masks(root, folder, images, options, parallel)
        for file in images:
            mask = None if defect == GOOD else masks.get(file)
            if mask is None and defect != GOOD:
                raise InputError(f"{file}: has no mask; expected {_mask_place(file, folder, options, parallel)}")
            items.append(SourceItem(defect, file, mask, ""))
    return items


def _pair(place: Path, options: LayoutOptions) -> tuple[list[Path], dict[Path, Path]]:
    """Images of a folder and the masks that lie beside them."""
    files = list_files(place)
    if options.mask_suffix is not None:
        suffix = options.mask_suffix
        masks = {file.name.removesuffix(suffix): file for file in files if file.name.endswith(suffix)}
        images = [file for file in list_images(place, options) if not file.name.endswith(suffix)]
        return images, {file: masks[file.stem] for file in images if file.stem in masks}
    masked = {file.stem.removesuffix("_mask"): file for file in files if file.stem.endswith("_mask")}
    images = [file for file in list_images(place, options) if not file.stem.endswith("_mask")]
    twins: dict[str, list[Path]] = {}
    for file in images:
        twins.setdefault(file.stem, []).append(file)
    for stem, group in twins.items():
        lossless = [file for file in group if file.suffix.lower() == ".png"]
        if len(group) == 2 and len(lossless) == 1 and stem not in masked:
            masked[stem] = lossless[0]
        elif len(group) > 1:
            names = " and ".join(file.name for file in group)
            raise InputError(f"{place}: {names}: which is the mask? expected option mask_suffix to say so")
    used = set(masked.values())
    images = [file for file in images if file not in used]
    return images, {file: masked[file.stem] for file in images if file.stem in masked}


def _parallel_masks(
    root: Path, folder: Path, images: list[Path], options: LayoutOptions, parallel: Path
) -> dict[Path, Path]:
    inside = folder / parallel.relative_to(root)
    places = [parallel / folder.name / options.subfolder, parallel / folder.name, inside]
    found: dict[Path, Path] = {}
    for place in reversed(places):
        files = {file.name: file for file in list_files(place)}
        stems = images_by_stem(place)
        for image in images:
            if options.mask_suffix is not None:
                mask = files.get(image.stem + options.mask_suffix)
            else:
                mask = stems.get(f"{image.stem}_mask") or stems.get(image.stem)
            if mask is not None:
                found[image] = mask
    return found


def _parallel_folder(root: Path, options: LayoutOptions) -> Path | None:
    if options.masks == "beside":
        return None
    if options.masks != "auto":
        return root / options.masks
    return next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)


def _good_folder(root: Path, options: LayoutOptions) -> Path | None:
    if options.good is not None:
        return root / options.good if (root / options.good).is_dir() else None
    for folder in list_folders(root):
        if folder.name.removeprefix(options.strip_prefix).lower() in _GOOD_NAMES:
            return folder
    return None


def _good_place(layout: str, options: LayoutOptions) -> str:
    if layout != "folder":
        return {"visa": "Data/Images/Normal", "mvtec3d": "train/good/rgb"}.get(layout, "train/good")
    return options.good or f"a folder named {', '.join(_GOOD_NAMES)} or the one that option good names"


def _mask_place(file: Path, folder: Path, options: LayoutOptions, parallel: Path | None) -> str:
    ending = options.mask_suffix or "_mask.png"
    if parallel is not None:
        return f"{parallel / folder.name}/{file.stem}{ending}"
    return f"{file.stem}{ending} beside it, or option masks or mask_suffix to say where"
