"""Ingestion of a source: checks every file, copies images byte for byte, normalises masks, writes the table."""

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.files import write_json
from defect_core.data.layouts.options import LayoutOptions, SourceItem, check_options
from defect_core.data.layouts.read import detect_layout, read_layout
from defect_core.data.records import (
    GOOD,
    Record,
    check_name,
    load_image,
    load_mask,
    pixel_digest,
    save_png,
    write_records,
)
from defect_core.errors import InputError
from defect_core.progress import track

TABLE = "records.parquet"
LEFT_OUT = "left_out.json"
MIN_SIDE = 16
"""Smallest width and height of an image in pixels."""
_RESERVED = ("masks", TABLE, LEFT_OUT)


def ingest_source(
    source: Path | None,
    product: str,
    out: Path,
    layout: str = "auto",
    options: LayoutOptions | Mapping[str, Any] | None = None,
    empty_masks: str = "error",
    min_per_defect: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Check a source and copy it to `out/<defect>/<id>.<ext>`, `out/masks/<defect>/<id>.png`, `out/records.parquet`.

    Ids keep the natural order of the file names. Masks are written as 0 and 255 (see `load_mask`); masks of normal
    images are ignored. Of several images with the same pixels and defect type only the first is copied. What is left
    out is listed in `out/left_out.json`. An earlier `out` is replaced; after an error nothing has changed.

    Args:
        source: folder of one product; None for the layout `demo`.
        product: name of the product.
        out: folder to create.
        layout: one of `LAYOUTS`; `demo` renders the demo product instead of reading a source.
        options: options of the layout.
        empty_masks: what happens to a defect image with an empty mask: `error` or `leave_out`.
        min_per_defect: smallest number of usable images of a defect type.
        seed: seed of the demo product.

    Returns:
        layout, images, good, defects {name: count}, splits {name: count}, left_out, duplicates.

    Raises:
        InputError: something in the source cannot be used; the message names the file.
    """
    out = Path(out)
    check_name(product, "product")
    checked = check_options(options)
    if empty_masks not in ("error", "leave_out"):
        raise InputError(f"empty_masks: {empty_masks!r}; expected error or leave_out")
    if layout == "demo":
        from defect_core.data.demo.render import write_demo_product

        if source is not None:
            raise InputError(f"{product}: layout demo renders its own images; expected no path, found {source}")
        with tempfile.TemporaryDirectory() as folder:
            write_demo_product(product, Path(folder), seed)
            summary = _ingest(Path(folder), product, out, "mvtec", checked, empty_masks, min_per_defect)
        return {**summary, "layout": "demo"}
    if source is None:
        raise InputError(f"{product}: layout {layout} needs a source folder; expected a path")
    return _ingest(Path(source), product, out, layout, checked, empty_masks, min_per_defect)


def _ingest(
    source: Path, product: str, out: Path, layout: str, options: LayoutOptions, empty_masks: str, min_per_defect: int
) -> dict[str, Any]:
    items = read_layout(source, product, layout, options)
    if layout == "auto":
        layout = detect_layout(source, options)
    _check_target(source, out)
    ids = _unique_ids(items)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        partial.chmod(0o755)
        records, left_out, duplicates = _copy(source, items, ids, product, partial, empty_masks)
        counts = Counter(record.defect for record in records)
        _check_counts(source, items, counts, min_per_defect)
        write_records(records, partial / TABLE)
        notes = {"left_out": left_out, "duplicates": duplicates}
        write_json(partial / LEFT_OUT, notes, sort_keys=False, ensure_ascii=True)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "layout": layout,
        "images": len(records),
        "good": counts[GOOD],
        "defects": {name: counts[name] for name in sorted(counts) if name != GOOD},
        "splits": dict(
            sorted(Counter(record.split or "unknown" for record in records if record.defect == GOOD).items())
        ),
        **notes,
    }


def _copy(
    source: Path, items: list[SourceItem], ids: list[str], product: str, target: Path, empty_masks: str
) -> tuple[list[Record], list[dict[str, str]], list[dict[str, str]]]:
    records: list[Record] = []
    left_out: list[dict[str, str]] = []
    duplicates: list[dict[str, str]] = []
    first_items: dict[str, SourceItem] = {}
    for item, stem in track(list(zip(items, ids, strict=True)), f"ingest {product}"):
        image = load_image(item.image_path)
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise InputError(f"{item.image_path}: {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}")
        mask = None if item.mask_path is None else load_united_mask(item, item.mask_path, image)
        name = item.image_path.relative_to(source).as_posix()
        if mask is not None and not mask.any():
            if empty_masks == "error":
                raise InputError(
                    f"{item.mask_path}: the mask is empty; expected defect pixels, "
                    f"or sources.{product}.empty_masks: leave_out"
                )
            left_out.append({"image": name, "reason": "empty mask"})
            continue
        digest = pixel_digest(image)
        if digest in first_items:
            first = first_items[digest]
            if first.defect != item.defect:
                raise InputError(
                    f"{item.image_path} ({item.defect}) and {first.image_path} ({first.defect}) hold the same image; "
                    "expected one label for it"
                )
            duplicates.append({"image": name, "same_as": first.image_path.relative_to(source).as_posix()})
            continue
        first_items[digest] = item
        path = f"{item.defect}/{stem}{item.image_path.suffix.lower()}"
        mask_path = None if mask is None else f"masks/{item.defect}/{stem}.png"
        (target / item.defect).mkdir(exist_ok=True)
        shutil.copyfile(item.image_path, target / path)
        if mask is not None and mask_path is not None:
            save_png(mask, target / mask_path)
        records.append(Record(product, item.defect, path, mask_path, item.split_hint, digest, width, height))
    return records, left_out, duplicates


def load_united_mask(item: SourceItem, mask_path: Path, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the union of all masks of an image, after a check of their sizes."""
    united = np.zeros(image.shape[:2], bool)
    for path in (mask_path, *item.more_masks):
        mask = load_mask(path, any_value=item.any_value)
        if mask.shape != united.shape:
            raise InputError(
                f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, its image {item.image_path.name} "
                f"{image.shape[1]}x{image.shape[0]}; expected the same size"
            )
        united |= mask
    return united


def _check_counts(source: Path, items: list[SourceItem], counts: Counter[str], min_per_defect: int) -> None:
    for defect in sorted({item.defect for item in items}):
        required = 1 if defect == GOOD else min_per_defect
        if counts[defect] < required:
            raise InputError(
                f"{source}: defect {defect!r} has {counts[defect]} usable example(s); expected at least {required} "
                "(ingest.min_per_defect), or options.defects without it"
            )


def _check_target(source: Path, out: Path) -> None:
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise InputError(f"{out}: overlaps the source {source}; expected a folder outside it")
    if out.exists() and not (out.is_dir() and ((out / TABLE).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out}: exists and was not written by ingest; expected an empty or a new folder")


def _unique_ids(items: list[SourceItem]) -> list[str]:
    """Return file stems of safe characters, unique per defect type; a repeated stem gets `train_` or `test_` first."""
    for item in items:
        if item.defect.lower() in _RESERVED:
            raise InputError(
                f"{item.image_path}: defect name {item.defect!r} is reserved; expected another folder name"
            )
    plain = [re.sub(r"[^A-Za-z0-9_.-]+", "_", item.image_path.stem).lstrip(".-") or "image" for item in items]
    taken = Counter((item.defect, stem.lower()) for item, stem in zip(items, plain, strict=True))
    repeated = {defect for (defect, _), count in taken.items() if count > 1}
    ids, used = [], set()
    for item, stem in zip(items, plain, strict=True):
        prefixed = f"{item.split_hint}_{stem}" if item.defect in repeated and item.split_hint else stem
        unique, extra = prefixed, 2
        while (item.defect, unique.lower()) in used:
            unique, extra = f"{prefixed}_{extra}", extra + 1
        used.add((item.defect, unique.lower()))
        ids.append(unique)
    return ids
