"""Ingestion of one image of a source: reads and checks it and its masks, and writes them under temporary names.

A function here runs in a worker process, so its arguments and results are small and can be pickled.
"""

import filecmp
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defect_core.data.depth import EIGHT_BIT, Depth, ValueRange
from defect_core.data.images import ImageInfo, one_line, read_stored, to_8_bit, turn_upright
from defect_core.data.layouts.options import SourceItem
from defect_core.data.mask_sources import (
    LARGE,
    MaskFile,
    MaskReading,
    MaskSizeError,
    MaskSource,
    check_mask,
    looks_inverted,
    read_masks,
)
from defect_core.data.near_duplicates import thumbnail
from defect_core.data.problems import printable
from defect_core.data.records import GOOD, pixel_digest, save_png
from defect_core.errors import InputError, InputErrors

MIN_SIDE = 16
"""Smallest width and height of an image in pixels."""
EMPTY_MASK = "empty mask"
COPIED_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of images that are copied byte for byte, if they have 8 bits and are upright. Others become PNG."""
_MAX_THUMBNAIL_SOURCE = 4_000_000  # pixels; a larger image is reduced first, which bounds the memory


@dataclass(frozen=True)
class ImageTask:
    """What a worker needs to ingest one image.

    Attributes:
        index: number of the image in the source; names the temporary files.
        item: the image and where its masks come from.
        folder: folder for the files; None writes nothing.
        depths: range of the values by their type, for images that are not 8 bit.
        max_pixels: largest number of pixels of an image.
        leave_out_empty: whether a defect image with an empty mask is left out instead of an error.
        labels: only these labels; None: all.
    """

    index: int
    item: SourceItem
    folder: Path | None
    depths: Mapping[str, Depth]
    max_pixels: int
    leave_out_empty: bool
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class MaskPart:
    """The mask of one defect type of an image: its label, its area in pixels, its digest and its temporary file."""

    label: str
    area: int
    digest: str
    file: Path | None


@dataclass
class ImageResult:
    """What a worker found.

    Attributes:
        problems: what is wrong; the image is not usable then.
        left_out: why the image is left out; None if it is used.
        notes: what was decided, without the name of the file.
        identity: sha256 of the stored values; the id of the image is its beginning.
        sha256: `pixel_digest` of the 8-bit image.
        width: in pixels.
        height: in pixels.
        depth: range of the original values.
        file: temporary file of the image.
        original: temporary file with the original values of an image that is not 8 bit.
        masks: the masks; empty for a normal image.
        thumbnail: see `near_duplicates.thumbnail`.
    """

    problems: tuple[str, ...] = ()
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    identity: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    depth: str = EIGHT_BIT
    file: Path | None = None
    original: Path | None = None
    masks: tuple[MaskPart, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None


def read_item(task: ImageTask) -> ImageResult:
    """Return what is in an image and its masks; problems of the user's data are in the result."""
    try:
        return _read(task)
    except InputErrors as error:
        return ImageResult(problems=error.problems)
    except InputError as error:
        return ImageResult(problems=(str(error),))
    except OSError as error:  # the file is gone or unreadable since it was listed, or the disk is full
        path = printable(task.item.image_path)
        return ImageResult(problems=(f"{path}: cannot be copied ({one_line(error)}); free space or repair the file",))


def measure_range(task: tuple[Path, int]) -> tuple[str, ValueRange] | None:
    """Return the type of an image's stored values and their range; None for 8 bits or an unreadable image.

    Args:
        task: the file and the largest number of pixels.
    """
    try:
        values, _ = read_stored(*task)
    except InputError:
        return None
    if values.dtype == np.uint8 or not values.size or not np.isfinite(values).all():
        return None
    return str(values.dtype), ValueRange.of(values)


def _read(task: ImageTask) -> ImageResult:
    item, path = task.item, task.item.image_path
    values, info = read_stored(path, task.max_pixels)
    height, width = values.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{printable(path)}: {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}")
    notes = _image_notes(info)
    depth = task.depths.get(str(values.dtype))
    levels = to_8_bit(values, depth, path)
    if depth is not None and values.dtype != np.uint8 and depth.clips(values):
        notes.append(f"has values outside {depth}, which are clipped; declare options.depth if they matter")
    result = ImageResult(sha256=pixel_digest(levels), width=width, height=height)
    result.identity = result.sha256 if values.dtype == np.uint8 else _identity(values)
    result.depth = EIGHT_BIT if values.dtype == np.uint8 else str(depth or Depth.of_bits(16))
    result.thumbnail = thumbnail(_small(levels))
    is_deep = values.dtype != np.uint8
    _write_image(task, result, levels, info, is_deep)
    del values, levels  # masks of large images are read without the image in memory
    if item.mask_source is not None and item.defect != GOOD:
        notes += _add_masks(task, result, info)
    result.notes = tuple(notes)
    return result


def _add_masks(task: ImageTask, result: ImageResult, info: ImageInfo) -> list[str]:
    """Read the masks of an image into the result, and return what was decided."""
    item = task.item
    if item.mask_source is None:
        return []
    reading, notes = _read_masks(item.mask_source, info, result.height, result.width)
    masks = _by_type(item, reading)
    problem = _problem(item, masks)
    if problem == EMPTY_MASK and (item.empty_mask_is_normal or task.leave_out_empty):
        result.left_out = None if item.empty_mask_is_normal else problem
        masks = {}
    elif problem:
        raise InputError(problem if problem != EMPTY_MASK else _empty(item))
    elif task.labels is not None:
        masks = {label: mask for label, mask in masks.items() if label in task.labels}
        result.left_out = None if masks else "none of its defect types is in options.defects"
    if result.left_out is None:
        result.masks = tuple(_write_mask(task, number, *each) for number, each in enumerate(sorted(masks.items())))
    return [*notes, *_large_notes(masks)]


def _image_notes(info: ImageInfo) -> list[str]:
    notes = []
    if info.orientation > 1:
        notes.append("the EXIF orientation is not 1; the image is turned upright, and its mask is read as upright")
    if info.frames > 1:
        notes.append(f"has {info.frames} frames; the first is read")
    return notes


def _read_masks(source: MaskSource, info: ImageInfo, height: int, width: int) -> tuple[MaskReading, list[str]]:
    """Return the masks in upright pixels; those of the stored pixels' size are turned like their image."""
    try:
        reading = read_masks(source, height, width)
    except MaskSizeError:
        if info.orientation < 5:
            raise
        stored = read_masks(source, width, height)
        masks = {label: turn_upright(mask, info.orientation) for label, mask in stored.masks.items()}
        note = "the mask has the size of the stored pixels; it is turned upright like its image"
        return MaskReading(masks), [*stored.notes, note]
    return reading, list(reading.notes)


def _by_type(item: SourceItem, reading: MaskReading) -> dict[str, NDArray[np.bool_]]:
    """Return the masks by label; the folder of the image decides the label unless mask values do."""
    has_values = isinstance(item.mask_source, MaskFile) and item.mask_source.values is not None
    if item.defect is None or has_values:
        return reading.masks
    united: NDArray[np.bool_] | None = None
    for mask in reading.masks.values():
        united = mask if united is None else united | mask
    return {} if united is None else {item.defect: united}


def _problem(item: SourceItem, masks: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return what is wrong with the masks of an image, `EMPTY_MASK`, or an empty string."""
    source = item.mask_source
    if source is None or not masks:
        return EMPTY_MASK
    where = printable(source.paths[0] if source.paths else item.image_path)
    if isinstance(source, MaskFile) and any(_is_same_file(path, item.image_path) for path in source.paths):
        return f"{where}: the mask is the same file as its image; expected a mask"
    for label, mask in masks.items():
        wrong = check_mask(mask)
        if wrong:
            return f"{where}: {wrong} ({label}); expected a mask of the defect pixels only"
        is_auto = not isinstance(source, MaskFile) or source.rule == "auto"
        if is_auto and looks_inverted(mask):
            return (
                f"{where}: marks {mask.mean():.0%} of the image and most of its border, so it looks inverted; set "
                "options.mask_rule: inverted if the defect is black, or options.mask_rule: any if it is this large"
            )
    return ""


def _empty(item: SourceItem) -> str:
    source = item.mask_source
    where = source.paths[0] if source is not None and source.paths else item.image_path
    return (
        f"{printable(where)}: the mask is empty; expected defect pixels, or --empty-masks leave_out "
        "(empty_masks: leave_out of the source in params.yaml)"
    )


def _large_notes(masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    return [
        f"the mask of {printable(label)} covers more than half of the image"
        for label, mask in masks.items()
        if np.count_nonzero(mask) > LARGE * mask.size
    ]


def _is_same_file(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def _write_mask(task: ImageTask, number: int, label: str, mask: NDArray[np.bool_]) -> MaskPart:
    digest = hashlib.sha256(np.packbits(mask).data).hexdigest()
    file = None
    if task.folder is not None:
        file = task.folder / f"{task.index}-{number}.png"
        save_png(mask, file)
    return MaskPart(label, int(np.count_nonzero(mask)), digest, file)


def _write_image(
    task: ImageTask, result: ImageResult, levels: NDArray[np.uint8], info: ImageInfo, is_deep: bool
) -> None:
    """Copy the image byte for byte if it is an upright 8-bit image, otherwise write it as PNG."""
    if task.folder is None:
        return
    path = task.item.image_path
    suffix = path.suffix.lower()
    if not is_deep and info.orientation == 1 and suffix in COPIED_SUFFIXES:
        result.file = task.folder / f"{task.index}{suffix}"
        shutil.copyfile(path, result.file)
        return
    result.file = task.folder / f"{task.index}.png"
    save_png(levels, result.file)
    if is_deep:
        result.original = task.folder / f"{task.index}-original{suffix}"
        shutil.copyfile(path, result.original)


def _small(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = levels.shape[:2]
    if height * width > _MAX_THUMBNAIL_SOURCE:
        factor = (_MAX_THUMBNAIL_SOURCE / (height * width)) ** 0.5
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        levels = np.asarray(cv2.resize(levels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(levels)


def _identity(values: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{values.dtype} {values.shape} ".encode())
    for top in range(0, len(values), 512):
        digest.update(np.ascontiguousarray(values[top : top + 512]).data)
    return digest.hexdigest()
