"""Reader of source folders: finds the images, their defect types and their masks, and accounts for every file."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from defect_core.data.annotations import read_annotations
from defect_core.data.layouts.annotated import read_annotated
from defect_core.data.layouts.folders import detect_folder, read_folder
from defect_core.data.layouts.mvtec import detect_mvtec, read_mvtec
from defect_core.data.layouts.options import (
    FAMILIES,
    LAYOUTS,
    LayoutOptions,
    SourceItem,
    SourceListing,
    check_options,
    option_layouts,
)
from defect_core.data.layouts.own_export import REASON, OwnExport, find_own_exports, read_own_export
from defect_core.data.layouts.pairs import (
    detect_dagm,
    detect_kolektor,
    detect_kolektor2,
    detect_pairs,
    read_dagm,
    read_pairs,
)
from defect_core.data.layouts.published import (
    detect_loco,
    detect_mvtec3d,
    detect_visa,
    read_loco,
    read_mvtec3d,
    read_visa,
)
from defect_core.data.layouts.reader import MAX_LISTED, MissingMasks, SourceReader, sort_items
from defect_core.data.layouts.real_iad import detect_real_iad, read_real_iad
from defect_core.data.layouts.severstal import detect_severstal, read_severstal
from defect_core.data.layouts.tree import Folder, scan_source
from defect_core.data.problems import ProblemLog
from defect_core.data.records import GOOD
from defect_core.errors import InputError

_READERS: dict[str, Callable[[SourceReader], list[SourceItem]]] = {
    "folder": read_folder,
    "mvtec": read_mvtec,
    "loco": read_loco,
    "mvtec3d": read_mvtec3d,
    "visa": read_visa,
    "real_iad": read_real_iad,
    "dagm": read_dagm,
    "severstal": read_severstal,
    "pairs": read_pairs,
}
# In this order, so that a data set with a special folder is not taken for one without it.
_DETECTORS: tuple[tuple[str, Callable[[SourceReader], bool]], ...] = (
    ("visa", detect_visa),
    ("mvtec3d", detect_mvtec3d),
    ("loco", detect_loco),
    ("severstal", detect_severstal),
    ("real_iad", detect_real_iad),
    ("kolektor", detect_kolektor),
    ("kolektor2", detect_kolektor2),
    ("dagm", detect_dagm),
)
_EXPECTED_NORMAL = {"visa": "Data/Images/Normal", "mvtec3d": "train/good/rgb", "real_iad": "OK"}


def read_layout(
    path: Path,
    product: str,
    layout: str = "auto",
    options: LayoutOptions | Mapping[str, Any] | None = None,
    problems: ProblemLog | None = None,
    missing_masks: MissingMasks = "error",
) -> SourceListing:
    """Return the images of a source folder, the files that are used, and the files that are ignored with the reason.

    No image is decoded.

    Args:
        path: folder of the product.
        product: its name, for messages.
        layout: one of `LAYOUTS`, see docs/data.md; `auto` detects it.
        options: options of the layout.
        problems: log that receives what is wrong; None: the problems are raised.
        missing_masks: what happens to a defect image without a mask: `error`, `leave_out`, or `normal` (it counts as
            a normal image).

    Raises:
        InputError, InputErrors: an option cannot be used, or there are problems and no log is given.
    """
    path, log = Path(path), ProblemLog() if problems is None else problems
    checked = check_options(options)
    listing = _read(path, product, layout, checked, log, missing_masks)
    if problems is None:
        log.raise_if_any()
    return listing


def _read(
    path: Path, product: str, layout: str, options: LayoutOptions, log: ProblemLog, missing_masks: MissingMasks
) -> SourceListing:
    nothing = SourceListing(layout, (), (), ())
    if layout not in LAYOUTS:
        log.add(product, f"unknown layout {layout!r}", f"expected one of {', '.join(LAYOUTS)}")
        return nothing
    if layout == "demo":
        log.add(product, "layout demo has no source folder", "expected a layout that has one")
        return nothing
    if not path.is_dir():
        log.add(path, "not a folder", f"expected the folder with the images of {product}")
        return nothing
    tree, ignored = scan_source(path, options.image_suffixes, log)
    reader = SourceReader(tree, options, log, missing_masks)
    regions = _take_regions(reader)
    everything = list(tree.all_files())
    export = find_own_exports(tree, reader.is_image)
    tree.remove_files({*export.synthetic, *export.other})
    for file in export.unknown[:MAX_LISTED]:
        what = "is in the folder of a Defectory export, whose marker does not list it"
        log.add(file, what, "expected your own images in another folder")
    images = sum(map(reader.is_image, tree.all_files()))
    if not images and not export.synthetic:
        log.add(path, "has no images", f"expected files with one of the suffixes {', '.join(options.image_suffixes)}")
    chosen, items = _read_items(reader, layout, export)
    if layout != "auto":
        _check_accepted(reader, chosen)
    reader.report_unlisted()
    _check_kinds(reader, chosen, items, bool(images))
    return _account(reader, chosen, items, export, regions, everything, ignored)


def _read_items(reader: SourceReader, layout: str, export: OwnExport) -> tuple[str, list[SourceItem]]:
    """Return the layout that is read, and its items."""
    real = set(export.real)
    only_exported = export.layouts and all(file in real for file in reader.tree.all_files() if reader.is_image(file))
    if layout == "own_export" or only_exported:
        if len(export.layouts) > 1:
            names = ", ".join(folder.name for folder in export.layouts)
            reader.problems.add(reader.tree.path, f"has exports of several products: {names}", "expected one of them")
        return "own_export", read_own_export(reader, export)
    if layout == "annotations":
        index = read_annotations(reader.tree.path, reader.options.annotations, reader.problems)
        if index is None:
            reader.problems.add(reader.tree.path, "has no annotation file", "expected one, see docs/data.md")
        return layout, [] if index is None else read_annotated(reader, index)
    if layout == "auto":
        return _read_detected(reader)
    return layout, _READERS[FAMILIES.get(layout, layout)](reader)


def _read_detected(reader: SourceReader) -> tuple[str, list[SourceItem]]:
    """Return the layout that fits, and its items.

    Masks in folders have priority over annotation files, which are read if a defect image has no mask.
    """
    name = next((name for name, fits in _DETECTORS if fits(reader)), "")
    if name:
        _check_accepted(reader, name)
        return name, _READERS[FAMILIES.get(name, name)](reader)
    candidates = [detect_mvtec(reader), "folder" if detect_folder(reader) else ""]
    name = next(filter(None, candidates), "")
    trial = _copy_reader(reader)
    items = _READERS[FAMILIES.get(name, name)](trial) if name else []
    if name and not trial.problems and not trial.missing_count and any(item.defect != GOOD for item in items):
        index, notes = None, ProblemLog()
    else:
        notes = ProblemLog()
        index = read_annotations(reader.tree.path, reader.options.annotations, notes)
    if index is not None and (index.shapes or index.normal_images):
        _extend(reader.problems, notes)
        _check_accepted(reader, "annotations")
        return f"annotations ({index.format})", read_annotated(reader, index)
    if not name and detect_pairs(reader):
        name = "pairs"
        items = read_pairs(trial)
    if not name:
        _extend(reader.problems, notes)
        _report_unknown(reader)
        return "auto", []
    _check_accepted(reader, name)
    reader.adopt(trial)
    if reader.problems:
        _extend(reader.problems, notes)
    return name, items


def _copy_reader(reader: SourceReader) -> SourceReader:
    return replace(reader, problems=ProblemLog(), reasons={}, tables=[], other_files=[], without_mask=[], notes=[])


def _extend(log: ProblemLog, other: ProblemLog) -> None:
    for line in other.problems:
        log.add_error(InputError(line))


def _report_unknown(reader: SourceReader) -> None:
    """Add the problem that no layout fits; name the products if the folders are products."""
    products = []
    for folder in list(reader.tree.folders.values())[:100]:
        inner = SourceReader(_as_root(folder), reader.options, ProblemLog())
        if detect_mvtec(inner) or any(fits(inner) for _, fits in _DETECTORS) or detect_folder(inner):
            products.append(folder.name)
    if products:
        reader.problems.add(
            reader.tree.path,
            f"has the folders of several products: {', '.join(products)}",
            "expected one of these folders",
        )
    elif not any(map(reader.is_image, reader.tree.all_files())):
        return
    else:
        reader.problems.add(
            reader.tree.path,
            "layout not recognised",
            "expected mvtec (train/good, test/<defect>, ground_truth/<defect>), folder (a folder of normal images, "
            "option good, and one per defect), annotation files, or another layout of docs/data.md",
        )


def _as_root(folder: Folder) -> Folder:
    """Return a folder as the root of a source."""
    root = Folder(folder.path, (), list(folder.files))
    for name, child in folder.folders.items():
        root.folders[name] = _shorten(child, len(folder.parts))
    return root


def _shorten(folder: Folder, count: int) -> Folder:
    return Folder(
        folder.path,
        folder.parts[count:],
        list(folder.files),
        {name: _shorten(child, count) for name, child in folder.folders.items()},
    )


def _check_accepted(reader: SourceReader, layout: str) -> None:
    """Add a problem for each option that the layout does not accept."""
    family = FAMILIES.get(layout, layout)
    for key, field in LayoutOptions.model_fields.items():
        accepted = option_layouts(key)
        if getattr(reader.options, key) != field.default and "all" not in accepted and family not in accepted:
            names = [name for name in LayoutOptions.model_fields if {"all", family} & set(option_layouts(name))]
            reader.problems.add(f"options.{key}", f"not an option of layout {layout}", f"expected {', '.join(names)}")


def _check_kinds(reader: SourceReader, layout: str, items: list[SourceItem], has_images: bool) -> None:
    """Add a problem if a source has no normal image or no defect image."""
    path = reader.tree.path
    if layout in ("auto", "own_export") or not has_images:
        return
    unclear = any(item.empty_mask_is_normal for item in items)
    if not unclear and not any(item.defect == GOOD for item in items):
        good = reader.options.good or "a folder named good, ok, normal or defect_free, or the folder of the option good"
        expected = _EXPECTED_NORMAL.get(layout, good if FAMILIES.get(layout, layout) != "mvtec" else "train/good")
        reader.problems.add(path, "no normal images found", f"expected some in {expected}")
    if not unclear and not any(item.defect != GOOD for item in items) and not reader.missing_count:
        reader.problems.add(path, "no defect images found", "expected one folder per defect type")


def _take_regions(reader: SourceReader) -> list[Path]:
    """Remove the pictures of the option `roi` from the tree, and return them."""
    name = reader.options.roi
    if name is None:
        return []
    folder = reader.tree.find(name)
    place = Path(name)
    parent = reader.tree.find(place.parent.as_posix())
    file = None if parent is None else parent.find_file(place.name)
    found = list(folder.all_files()) if folder is not None else [file] if file is not None else []
    if not found:
        reader.problems.add("options.roi", f"{name!r} is not in {reader.tree.path}", "expected a picture or a folder")
    reader.tree.remove_files(set(found))
    return found


def _account(
    reader: SourceReader,
    layout: str,
    items: list[SourceItem],
    export: OwnExport,
    regions: list[Path],
    everything: list[Path],
    refused: list[tuple[Path, str]],
) -> SourceListing:
    """Return the listing, in which every file is used or ignored."""
    used = {*reader.tables, *regions}
    for item in items:
        used.add(item.image_path)
        if item.mask_source is not None:
            used.update(item.mask_source.paths)
    twice = [path for path, count in Counter(item.image_path for item in items).items() if count > 1]
    for path in twice:
        reader.problems.add(path, "is read twice", "expected it in one folder or table row")
    reasons = {**dict.fromkeys(export.synthetic, REASON), **export.other, **reader.reasons}
    ignored = list(refused)
    for file in everything:
        if file in used:
            continue
        default = f"not part of layout {layout}" if reader.is_image(file) else _suffix_reason(file)
        ignored.append((file, reasons.get(file, default)))
    known = [*regions, *(file for file in everything if file in used)]
    return SourceListing(
        layout,
        tuple(sort_items(items)),
        tuple(dict.fromkeys(known)),
        tuple(ignored),
        tuple(reader.other_files),
        tuple(export.synthetic),
        tuple(reader.without_mask),
        (*reader.notes, *reader.describe_nested()),
    )


def _suffix_reason(file: Path) -> str:
    return f"no image file (suffix {file.suffix})" if file.suffix else "no image file (no suffix)"
