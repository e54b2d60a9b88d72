"""Ingestion of a source: checks every file, copies images, normalises masks, writes the table."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defect_core.data.counts import count_problems
from defect_core.data.depth import Depth, ValueRange, detect_range
from defect_core.data.files import write_json
from defect_core.data.images import MAX_PIXELS, has_more_than_8_bits
from defect_core.data.layouts.options import LayoutOptions, SourceItem, SourceListing, check_options
from defect_core.data.layouts.read import read_layout
from defect_core.data.layouts.read_item import ImageTask, measure_range, read_item
from defect_core.data.layouts.reader import MissingMasks
from defect_core.data.layouts.taken import TakenImages
from defect_core.data.near_duplicates import THUMBNAILS
from defect_core.data.parallel import map_ordered
from defect_core.data.problems import ProblemLog, printable
from defect_core.data.records import GOOD, Record, check_name, write_records
from defect_core.errors import InputError
from defect_core.progress import track

TABLE = "records.parquet"
LEFT_OUT = "left_out.json"
_MAX_MEASURED = 500  # normal images whose range of values is measured, evenly spaced


@dataclass(frozen=True)
class IngestChoices:
    """What happens to images that cannot be used, and how many are needed.

    Attributes:
        empty_masks: `error` or `leave_out` a defect image with an empty mask.
        missing_masks: `error`, `leave_out` a defect image without a mask, or `normal`.
        min_per_defect: smallest number of usable images of a defect type.
    """

    empty_masks: str = "error"
    missing_masks: MissingMasks = "error"
    min_per_defect: int = 3


def ingest_source(  # noqa: PLR0913 - the settings of one entry of `sources`, each independent
    source: Path | None,
    product: str,
    out: Path,
    layout: str = "auto",
    options: LayoutOptions | Mapping[str, Any] | None = None,
    empty_masks: str = "error",
    min_per_defect: int = 3,
    seed: int = 0,
    *,
    missing_masks: MissingMasks = "error",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Check a source and copy it to `out/images/<id>.<ext>`, `out/masks/<defect>/<id>.png`, `out/records.parquet`.

    The id of an image is the beginning of the digest of its pixels, so a new file changes no other id. Images are
    turned upright. Images that are not 8 bit are written as 8-bit PNG, and their original is kept in
    `out/originals/<id>.<ext>`. Masks are written as 0 and 255, and linked by the name of the original image as well;
    masks of normal images are ignored. Of several images
    with the same pixels only the first is copied. What is left out, and what was decided, is listed in
    `out/left_out.json`. An earlier `out` is replaced; after an error nothing has changed.

    Args:
        source: folder of one product; None for the layout `demo`.
        product: name of the product.
        out: folder to create.
        layout: one of `LAYOUTS`; `demo` renders the demo product instead of reading a source.
        options: options of the layout.
        empty_masks: what happens to a defect image with an empty mask: `error` or `leave_out`.
        min_per_defect: smallest number of usable images of a defect type.
        seed: seed of the demo product.
        missing_masks: what happens to a defect image without a mask: `error`, `leave_out` or `normal`.
        dry_run: read and check everything, and write nothing.

    Returns:
        layout, images, good, defects {key: count}, labels {key: label}, splits {name: count}, depth [text], sizes
        [[width, height, count]], mask_areas {key: [smallest, median, largest] in pixels}, left_out, duplicates,
        ignored [{path, reason}], notes; with `dry_run` also records.

    Raises:
        InputErrors: something in the source cannot be used; one problem per file.
        InputError: an argument cannot be used, or there is one problem only.
    """
    out = Path(out)
    check_name(product, "product")
    checked = check_options(options)
    choices = IngestChoices(empty_masks, missing_masks, min_per_defect)
    _check_choices(choices)
    if layout == "demo":
        from defect_core.data.demo.render import write_demo_product

        if source is not None:
            raise InputError(f"{product}: layout demo renders its own images; expected no path, found {source}")
        with tempfile.TemporaryDirectory() as folder:
            write_demo_product(product, Path(folder), seed)
            summary = _ingest(Path(folder), product, out, "mvtec", checked, choices, dry_run)
        return {**summary, "layout": "demo"}
    if source is None:
        raise InputError(f"{product}: layout {layout} needs a source folder; expected a path")
    return _ingest(Path(source), product, out, layout, checked, choices, dry_run)


def _check_choices(choices: IngestChoices) -> None:
    if choices.empty_masks not in ("error", "leave_out"):
        raise InputError(f"empty_masks: {choices.empty_masks!r}; expected error or leave_out")
    if choices.missing_masks not in ("error", "leave_out", "normal"):
        raise InputError(f"missing_masks: {choices.missing_masks!r}; expected error, leave_out or normal")


def _ingest(
    source: Path,
    product: str,
    out: Path,
    layout: str,
    options: LayoutOptions,
    choices: IngestChoices,
    dry_run: bool,
) -> dict[str, Any]:
    problems = ProblemLog()
    listing = read_layout(source, product, layout, options, problems, choices.missing_masks)
    if dry_run:
        taken = _read_items(source, product, listing, options, choices, None, problems)
        _check_counts(source, listing, taken, choices, problems)
        problems.raise_if_any()
        return {**_summary(listing, taken, source), "records": taken.records()}
    _check_target(source, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        partial.chmod(0o755)
        taken = _read_items(source, product, listing, options, choices, partial, problems)
        _check_counts(source, listing, taken, choices, problems)
        problems.raise_if_any()
        records = taken.install(partial)
        _ingest_regions(source, options, records, partial, problems)
        problems.raise_if_any()
        write_records(records, partial / TABLE)
        taken.thumbnails.write(partial / THUMBNAILS)
        summary = _summary(listing, taken, source)
        notes = {key: summary[key] for key in ("left_out", "duplicates", "ignored", "notes")}
        write_json(partial / LEFT_OUT, notes, sort_keys=False, ensure_ascii=True)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _ingest_regions(
    source: Path, options: LayoutOptions, records: Sequence[Record], partial: Path, problems: ProblemLog
) -> None:
    if options.roi is not None:
        from defect_core.data.regions import ingest_regions

        ingest_regions(source, options.roi, records, partial, problems)


def _read_items(
    source: Path,
    product: str,
    listing: SourceListing,
    options: LayoutOptions,
    choices: IngestChoices,
    target: Path | None,
    problems: ProblemLog,
) -> TakenImages:
    """Read every image of a listing; problems are added to the log."""
    max_pixels = options.max_pixels or MAX_PIXELS
    depths, depth_notes = _find_depths(listing.items, options.depth, max_pixels)
    taken = TakenImages(source, product, problems)
    taken.general_notes += depth_notes
    folder = None
    if target is not None:
        folder = target / ".reading"
        folder.mkdir()
    tasks = [
        ImageTask(index, item, folder, depths, max_pixels, choices.empty_masks == "leave_out", options.defects)
        for index, item in enumerate(listing.items)
    ]
    results = track(map_ordered(read_item, tasks), f"ingest {product}", total=len(tasks))
    for item, result in zip(listing.items, results, strict=True):
        taken.add(item, result)
    return taken


def _find_depths(
    items: Sequence[SourceItem], declared: str | int | None, max_pixels: int
) -> tuple[dict[str, Depth], list[str]]:
    """Return the range of values by their type, and notes that say how it was found."""
    flags = map_ordered(has_more_than_8_bits, [item.image_path for item in items], chunk=64)
    deep = [item for item, is_deep in zip(items, flags, strict=True) if is_deep]
    if not deep:
        return {}, []
    normals = [item for item in deep if item.defect == GOOD or item.mask_source is None] or deep
    if declared is not None:
        kinds = ("uint16", "int32", "float32")
        return {kind: Depth.parse(declared, kind) for kind in kinds}, [f"depth: {declared} (options.depth)"]
    chosen = [normals[i * len(normals) // _MAX_MEASURED] for i in range(_MAX_MEASURED)]
    chosen = normals if len(normals) <= _MAX_MEASURED else chosen
    ranges: dict[str, list[ValueRange]] = {}
    found = list(map_ordered(measure_range, [(item.image_path, max_pixels) for item in chosen]))
    if normals is not deep and not {kind for each in found if each for kind in (each[0],)}:
        found = list(map_ordered(measure_range, [(item.image_path, max_pixels) for item in deep]))
    for each in found:
        if each is not None:
            ranges.setdefault(each[0], []).append(each[1])
    depths = {kind: detect_range(values, kind) for kind, values in ranges.items()}
    notes = [
        f"depth: {depths[kind]}, detected over {len(values)} images with values from {min(v.low for v in values):g} "
        f"to {max(v.high for v in values):g}; declare options.depth if the camera's range differs"
        for kind, values in ranges.items()
    ]
    if len(deep) < len(items):
        notes.append(f"{len(items) - len(deep)} images have 8 bits and {len(deep)} have more")
    return depths, notes


def _check_counts(
    source: Path, listing: SourceListing, taken: TakenImages, choices: IngestChoices, problems: ProblemLog
) -> None:
    """Add what is missing to the problems, unless unreadable files are the reason."""
    counts = taken.label_counts()
    normals = counts.pop(GOOD, 0)
    labels = [item.defect for item in listing.items if item.defect not in (None, GOOD)]
    defects = {label: counts.get(label, 0) for label in [*dict.fromkeys(map(str, labels)), *counts]}
    is_damaged = bool(problems)
    for what, cure in count_problems(normals, defects, choices.min_per_defect):
        if not is_damaged:
            problems.add(printable(source), what, cure)
    if not defects and not listing.synthetic and not is_damaged:
        problems.add(printable(source), "no defect images found", "expected one folder per defect type, or annotations")


def _summary(listing: SourceListing, taken: TakenImages, source: Path) -> dict[str, Any]:
    normals = [record for record in taken.records() if record.defect == GOOD]
    defects = taken.key_counts()
    defects.pop(GOOD, None)
    notes = [*listing.notes, *taken.notes()]
    if listing.synthetic:
        count = len(listing.synthetic)
        notes.append(f"{count} synthetic images of an export are left out; they are never read as real images")
    return {
        "layout": listing.layout,
        "images": len(taken),
        "good": len(normals),
        "defects": dict(sorted(defects.items())),
        "labels": taken.labels,
        "splits": dict(sorted(Counter(record.split or "unknown" for record in normals).items())),
        "depth": sorted({record.depth for record in taken.records()}),
        "sizes": taken.sizes(),
        "mask_areas": taken.mask_areas(),
        "left_out": taken.left_out,
        "duplicates": taken.duplicates,
        "ignored": [{"path": printable(_relative(path, source)), "reason": reason} for path, reason in listing.ignored],
        "notes": notes,
    }


def _relative(path: Path, source: Path) -> Path:
    return path.relative_to(source) if path.is_relative_to(source) else path


def _check_target(source: Path, out: Path) -> None:
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise InputError(f"{out}: overlaps the source {source}; expected a folder outside it")
    if out.exists() and not (out.is_dir() and ((out / TABLE).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out}: exists and was not written by ingest; expected an empty or a new folder")
