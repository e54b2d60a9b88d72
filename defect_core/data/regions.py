"""Regions: pictures that are white where defects may be placed, in `data/raw/<product>/roi`.

`product.png` applies to all images, `<id>.png` to one image, and any other picture to the defect types whose
`placement` rule names it. Several regions are intersected.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.data.placement_settings import ANY, PlacementRule
from defect_core.data.problems import ProblemLog, printable
from defect_core.data.records import GOOD, Record, load_mask, save_png
from defect_core.errors import InputError

ROI = "roi"
"""Folder in `data/raw/<product>`."""
PRODUCT = "product"
"""Stem of the picture that applies to all images."""
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm")
_ENDINGS = ("", "_roi", "_mask", "_region")  # what the name of a region may add to the stem of its image
_SAME_ASPECT = 0.02  # relative difference of the aspect ratios of a region and an image that is accepted
_MAX_NAMES = 3


def ingest_regions(
    source: Path,
    roi: str | None,
    records: Sequence[Record],
    target: Path,
    problems: ProblemLog,
    images: Collection[str] | None = None,
) -> list[str]:
    """Check the regions of a source and copy them to `target/roi`.

    A single picture becomes `product.png`. Of a folder, `product.*` applies to all images, a picture with the relative
    path or the unique name of an image applies to it, and the others keep their names for the section `placement`.

    Args:
        source: folder of the source.
        roi: picture or folder, relative to the source; None: no regions.
        records: records of the product.
        target: folder of the product in `data/raw`.
        problems: receives what is wrong.
        images: images whose own pictures are read; None: all. The width and height of other records are not used.

    Returns:
        The names of the pictures that the section `placement` may use, such as `roi/head.png`.
    """
    if roi is None:
        return []
    path = source / roi
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    else:
        files = [path] if path.is_file() else []
    if not files:
        problems.add(f"options.roi: {printable(roi)}", "has no picture", f"expected one below {printable(source)}")
        return []
    names = _image_names(records)
    named, covered = [], set()
    for file in files:
        relative = PurePosixPath(file.relative_to(path).as_posix()) if path.is_dir() else PurePosixPath(PRODUCT)
        record = _find_image(relative, names)
        if record is None:
            out = relative.with_name(relative.stem.lower() if relative.stem.lower() == PRODUCT else relative.stem)
            covered |= {row.image for row in records} if str(out) == PRODUCT else set()
        else:
            out = PurePosixPath(PurePosixPath(record.image).stem)
            covered.add(record.image)
            if images is not None and record.image not in images:
                continue
        region = _read_region(file, record, problems)
        if region is None:
            continue
        written = target / ROI / out.parent / f"{out.name}.png"
        if written.exists():
            problems.add(printable(file), f"a second region for {printable(str(out))}", "keep one of them")
            continue
        save_png(region, written)
        if record is None and str(out) != PRODUCT:
            named.append(written.relative_to(target).as_posix())
    _check_covered(path, records, covered, len(named) < len(files), problems)
    return named


def load_region(raw: Path, record: Record, size: tuple[int, int] | None = None) -> NDArray[np.bool_] | None:
    """Return where defects may be placed on an image, bool [H, W]; None if the product has no region for it.

    Args:
        raw: folder `data/raw/<product>`.
        record: record of the image.
        size: (H, W) of a reduced image; None: that of the image.

    Raises:
        InputError: a region has another aspect ratio than the image, or no pixel is left.
    """
    size = size or (record.height, record.width)
    stems = (PRODUCT, PurePosixPath(record.image).stem)
    files = [file for file in (raw / ROI / f"{stem}.png" for stem in stems) if file.is_file()]
    if not files:
        return None
    region = np.logical_and.reduce([_fit_region(file, size) for file in files])
    if not region.any():
        raise InputError(f"{files[-1]}: leaves no pixel for defects on {record.image}; make the region larger")
    return region


def load_named_region(raw: Path, name: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the region that a `placement` rule names, bool [H, W].

    Args:
        raw: folder `data/raw/<product>`.
        name: such as `roi/head.png`.
        size: (H, W) of the image.

    Raises:
        InputError: the picture is missing, cannot be read, or has another aspect ratio.
    """
    file = raw / PurePosixPath(name).with_suffix(".png")
    if not file.is_file():
        known = sorted(each.relative_to(raw).as_posix() for each in (raw / ROI).rglob("*.png"))
        found = ", ".join(known[:_MAX_NAMES]) + (", ..." if len(known) > _MAX_NAMES else "")
        raise InputError(
            f"region: {name} is not in {raw}; found {found or 'no region'}; add the picture to the folder that "
            "options.roi of the source names, and ingest again"
        )
    return _fit_region(file, size)


def regions_by_defect(
    raw: Path, record: Record, rules: Mapping[str, PlacementRule], size: tuple[int, int] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Return the regions bool [H, W] of a normal image by defect type; `*` for types without a rule.

    A defect type is left out if it may be placed everywhere.

    Args:
        raw: folder `data/raw/<product>`.
        record: record of the image.
        rules: rules of the product by defect type, from `rules_of`.
        size: (H, W) of a reduced image; None: that of the image.

    Raises:
        InputError: a region is missing or does not fit, or two have no pixel in common.
    """
    general = load_region(raw, record, size)
    everywhere = np.ones(size or (record.height, record.width), bool)
    regions = {}
    for defect in sorted({ANY, *rules}):
        name = rules[defect].region if defect in rules else None
        own = everywhere if name is None else load_named_region(raw, name, everywhere.shape)
        region = own if general is None else own & general
        if not region.any():
            raise InputError(
                f"params.yaml: placement.{record.product}.{defect}.region: {name} and the region of {record.image} "
                "have no pixel in common; change one of them"
            )
        # A rule without a region also replaces the region of the rule for all others.
        if not region.all() or ANY in regions:
            regions[defect] = region
    return regions


def region_outline(region: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """Return the pixels bool [H, W] of a region within `width` pixels of its outline; the image border is no outline.

    Args:
        region: bool [H, W].
        width: of the line in pixels, at least 1.
    """
    inner = np.asarray(ndimage.binary_erosion(region, iterations=width, border_value=1), bool)
    return region & ~inner


def _image_names(records: Sequence[Record]) -> dict[str, Record | None]:
    """Return the record of each original path and stem; None for a stem that several images share."""
    names: dict[str, Record | None] = {}
    by_stem: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        path = PurePosixPath(record.source or record.image)
        names[str(path.with_suffix(""))] = record
        by_stem[path.stem][record.image] = record
    for stem, found in by_stem.items():
        names.setdefault(stem, next(iter(found.values())) if len(found) == 1 else None)
    return names


def _find_image(relative: PurePosixPath, names: dict[str, Record | None]) -> Record | None:
    for ending in _ENDINGS:
        if not relative.stem.endswith(ending):
            continue
        stem = relative.stem.removesuffix(ending)
        for name in (str(relative.with_name(stem or relative.stem)), stem):
            if record := names.get(name):
                return record
    return None


def _read_region(file: Path, record: Record | None, problems: ProblemLog) -> NDArray[np.bool_] | None:
    try:
        region = load_mask(file)
    except InputError as error:
        problems.add_error(error)
        return None
    if not region.any():
        problems.add(printable(file), "the region has no white pixel", "paint white where defects may be placed")
        return None
    if record is not None and region.shape != (record.height, record.width):
        problems.add(
            printable(file),
            f"{region.shape[1]}x{region.shape[0]} pixels, its image {record.width}x{record.height}",
            "expected the same size",
        )
        return None
    return region


def _check_covered(
    path: Path, records: Sequence[Record], covered: set[str], has_images: bool, problems: ProblemLog
) -> None:
    """Report normal images without a region, if other images have one: defects could be placed anywhere on them."""
    missing = [row for row in records if row.defect == GOOD and row.image not in covered]
    if has_images and covered and missing:
        first = printable(missing[0].source or missing[0].image)
        problems.add(
            printable(path),
            f"{len(missing)} normal image(s) without a region, the first is {first}",
            f"add them, or one picture {PRODUCT}.png for all images",
        )


def _fit_region(file: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    region = load_mask(file)
    height, width = region.shape
    if region.shape == size:
        return region
    if abs(height * size[1] / (width * size[0]) - 1) > _SAME_ASPECT:
        raise InputError(
            f"{file}: {width}x{height} pixels do not fit an image of {size[1]}x{size[0]}; "
            "expected the same ratio of width and height"
        )
    resized = Image.fromarray(region).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)
