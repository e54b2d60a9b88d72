"""A few images of a source with their masks, read without ingesting it: for the contact sheet and the preview."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.config import SourceConfig
from defect_core.data.depth import Depth, ValueRange, detect_range
from defect_core.data.images import probe_image, read_image, read_stored
from defect_core.data.layouts.options import SourceItem, check_options
from defect_core.data.layouts.read import read_layout
from defect_core.data.layouts.remote import open_source
from defect_core.data.masks import bounding_box
from defect_core.data.names import safe_key
from defect_core.data.placement_settings import PlacementRule
from defect_core.data.problems import ProblemLog
from defect_core.data.records import GOOD, Record, load_image, load_mask
from defect_core.data.regions import ingest_regions, load_region, region_outline, regions_by_defect
from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.project.paths import Project

MAX_SIDE = 2048
"""Longer side in pixels to which larger images are reduced; pictures for people need no more."""
MIN_CROP = 48
"""Smallest side of a zoomed crop in pixels of the image."""
CROP_FACTOR = 2.5
"""Side of a zoomed crop relative to the longer side of the mask's bounding box."""
_DEPTH_SAMPLES = 8
_REGION_COLOUR, _OUTLINE_FRACTION = (0, 170, 255), 150  # blue; the outline is 1/150 of the longer side wide
T = TypeVar("T")


def load_raw_examples(
    raw: Path,
    records: Sequence[Record],
    normals: int,
    per_defect: int,
    *,
    show_regions: bool = False,
    rules: Mapping[str, PlacementRule] | None = None,
) -> list[Example]:
    """Return some normal images and some examples of each defect type of an ingested product, spread over the records.

    Args:
        raw: folder with the files that the records name.
        records: records of one product.
        normals: largest number of normal images.
        per_defect: largest number of examples of a defect type.
        show_regions: whether to show the outline of the region where defects may be placed into the images.
        rules: placement rules by defect type; if given, normal images get their regions.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.defect].append(record)
    examples = []
    for defect, group in groups.items():
        for record in spread(group, normals if defect == GOOD else per_defect):
            image = load_image(raw / record.image)
            region = load_region(raw, record) if show_regions else None
            if region is not None:
                image[region_outline(region, max(1, max(region.shape) // _OUTLINE_FRACTION))] = _REGION_COLOUR
            small = _reduce(image)
            mask = None if record.mask is None else _reduce_mask(load_mask(raw / record.mask), small.shape[:2])
            size = (small.shape[0], small.shape[1])
            has_regions = rules is not None and mask is None
            regions = regions_by_defect(raw, record, rules or {}, size) if has_regions else {}
            examples.append(Example(record.product, defect, small, mask, record.source or record.image, regions))
    return examples


@contextmanager
def open_product_source(project: Project, product: str, source: SourceConfig) -> Iterator[tuple[Path, str]]:
    """Yield the folder of a product's images and the name of its layout; a demo product is rendered first.

    Raises:
        InputError: the source does not exist or cannot be downloaded.
    """
    if source.layout == "demo":
        from defect_core.data.demo.render import write_demo_product

        with tempfile.TemporaryDirectory() as folder:
            write_demo_product(product, Path(folder), project.params.seed)
            yield Path(folder), "mvtec"
        return
    local = None if source.path is None else Path(os.path.normpath(project.root / source.path))
    with open_source(source.path, local, project.state) as folder:
        if folder is None or not folder.is_dir():
            raise InputError(f"sources.{product}.path: {source.path} is not a folder; expected a folder of images")
        yield folder, source.layout


class SourceSample(NamedTuple):
    """Some images of a source, and how many the source has."""

    examples: list[Example]
    images: int
    defect_images: int


def load_source_examples(
    folder: Path,
    product: str,
    layout: str,
    source: SourceConfig,
    normals: int,
    per_defect: int,
    rules: Mapping[str, PlacementRule] | None = None,
) -> SourceSample:
    """Return some normal images and some examples of each defect type, spread over the source.

    Images that cannot be read are left out. The name of an example is its path in the source.

    Args:
        folder: the source.
        product: name of the product.
        layout: name of the layout, or `auto`.
        source: options of the source.
        normals: largest number of normal images.
        per_defect: largest number of examples of a defect type.
        rules: placement rules by defect type; if given, normal images get their regions.

    Raises:
        InputError: the source has no known layout, or a region cannot be used.
    """
    options = check_options(source.options)
    listing = read_layout(folder, product, layout, options, missing_masks=source.missing_masks)
    groups: dict[str | None, list[SourceItem]] = defaultdict(list)
    for item in listing.items:
        groups[item.defect].append(item)
    examples: list[Example] = []
    depth = _find_depth([item for item in listing.items if item.mask_source is None], options.depth)
    for defect, items in groups.items():
        limit = normals if defect == GOOD else per_defect if defect is not None else 4 * per_defect
        for item in spread(items, limit):
            examples += _read_item(item, folder, product, depth)
    examples = _limit_per_type(examples, normals, per_defect)
    if rules is not None:
        examples = _add_regions(examples, listing.items, folder, product, options.roi, rules)
    return SourceSample(
        examples,
        len({item.image_path for item in listing.items}),
        sum(item.mask_source is not None for item in listing.items),
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, count).round()]


def crop_around(example: Example) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return the image [h, w, 3] and the mask [h, w] in a square window around the mask; all of a normal image."""
    if example.mask is None or not example.mask.any():
        return example.image, None
    top, left, bottom, right = bounding_box(example.mask)
    side = max(MIN_CROP, round(CROP_FACTOR * max(bottom - top, right - left)))
    rows = _window((top + bottom) // 2, side, example.image.shape[0])
    columns = _window((left + right) // 2, side, example.image.shape[1])
    return example.image[rows, columns], example.mask[rows, columns]


def _window(centre: int, side: int, length: int) -> slice:
    start = min(max(0, centre - side // 2), max(0, length - side))
    return slice(start, min(length, start + side))


def _find_depth(items: Sequence[SourceItem], declared: str | None) -> Depth | None:
    """Return the declared range of values, or that of some normal images; None for images of 8 bits."""
    ranges, dtypes = [], []
    for item in spread(items, _DEPTH_SAMPLES):
        try:
            values, _ = read_stored(item.image_path)
        except InputError:
            continue
        if values.dtype != np.uint8:
            ranges.append(ValueRange.of(values))
            dtypes.append(str(values.dtype))
    if not ranges:
        return None
    return detect_range(ranges, dtypes[0]) if declared is None else Depth.parse(declared, dtypes[0])


def _read_item(item: SourceItem, folder: Path, product: str, depth: Depth | None) -> list[Example]:
    try:
        image = read_image(item.image_path, depth)
        masks = {} if item.mask_source is None else item.mask_source.masks(*image.shape[:2])
    except InputError:
        return []
    name = os.path.relpath(item.image_path, folder)
    if not masks:
        return [Example(product, GOOD, _reduce(image), None, name)] if item.defect in (GOOD, None) else []
    small = _reduce(image)
    return [
        Example(product, safe_key(item.defect if len(masks) == 1 and item.defect else label), small, reduced, name)
        for label, mask in masks.items()
        if (reduced := _reduce_mask(mask, small.shape[:2])).any()
    ]


def _add_regions(
    examples: Sequence[Example],
    items: Sequence[SourceItem],
    folder: Path,
    product: str,
    roi: str | None,
    rules: Mapping[str, PlacementRule],
) -> list[Example]:
    """Return the examples with the regions of the source in the normal images, as after `ingest`."""
    sizes = {example.name: _original_size(folder / example.name) for example in examples if example.mask is None}
    records = {}
    for index, item in enumerate(items):
        name = os.path.relpath(item.image_path, folder)
        height, width = sizes.get(name, (0, 0))
        defect = GOOD if item.mask_source is None else safe_key(item.defect or GOOD)
        records[name] = Record(product, defect, f"images/{index}.png", None, "", "", width, height, name)
    problems = ProblemLog()
    with tempfile.TemporaryDirectory() as raw:
        shown = {records[name].image for name in sizes}
        ingest_regions(folder, roi, list(records.values()), Path(raw), problems, shown)
        problems.raise_if_any()
        return [
            example
            if example.mask is not None
            else replace(
                example,
                regions=regions_by_defect(
                    Path(raw), records[example.name], rules, (example.image.shape[0], example.image.shape[1])
                ),
            )
            for example in examples
        ]


def _original_size(path: Path) -> tuple[int, int]:
    info = probe_image(path)
    return info.height, info.width


def _reduce(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if max(height, width) <= MAX_SIDE:
        return image
    scale = MAX_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _reduce_mask(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask in a smaller shape; a pixel is set where the mask has any pixel inside it."""
    if mask.shape == shape:
        return mask
    rows, columns = np.nonzero(mask)
    small = np.zeros(shape, bool)
    small[rows * shape[0] // mask.shape[0], columns * shape[1] // mask.shape[1]] = True
    return small


def _limit_per_type(examples: list[Example], normals: int, per_defect: int) -> list[Example]:
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for example in examples:
        counts[example.defect] += 1
        if counts[example.defect] <= (normals if example.mask is None else per_defect):
            kept.append(example)
    return kept
