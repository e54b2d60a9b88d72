"""What `add-product` says about the images of a product."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from defect_core.cli.estimate import describe_times
from defect_core.cli.source_examples import spread
from defect_core.data.counts import ADVISED_NORMALS
from defect_core.data.images import open_image
from defect_core.data.masks import component_widths
from defect_core.data.problems import printable
from defect_core.data.records import GOOD, Record, load_mask
from defect_core.evaluation.segmentation.scale import choose_scale
from defect_core.project.params import Params

MIN_WIDTH = 3
"""Pixels that a defect must be wide at the working resolution; below it a segmenter misses most of it."""
MAX_LINES = 8
"""Lines that the text shows of a list of files; --json prints all."""
_MAX_MASKS = 2000
_LARGEST_SEGMENTER = 512  # pixels; beyond it a training step needs more memory than most machines have
_LARGE_IMAGE = 2048  # pixels
_LARGE_MASK, _IMBALANCE = 0.5, 10


@dataclass(frozen=True)
class MaskSizes:
    """The sizes of the masks of a defect type, in pixels.

    Attributes:
        smallest, median, largest: area in the stored images.
        narrowest: side of the largest square inside the narrowest component.
        smallest_working: the smallest area at the working resolution.
        width_working: the narrowest width at the working resolution.
        coverage: largest fraction of an image that a mask covers.
    """

    smallest: int
    median: int
    largest: int
    narrowest: int
    smallest_working: float
    width_working: float
    coverage: float


class _Mask(NamedTuple):
    area: int
    narrowest: int
    height: int
    width: int


@dataclass
class ProductReport:
    """Facts about the images of a product; `asdict` gives what --json prints."""

    product: str
    source: str
    layout: str
    images: int
    counts: dict[str, dict[str, Any]]  # by defect key: label, images, train, test
    sizes: list[tuple[int, int, int]]  # width, height, number of images
    depth: str
    colour: str
    working_resolution: str
    masks: dict[str, MaskSizes]
    unusual: list[str]
    advice: list[str]
    left_out: list[dict[str, str]]
    duplicates: list[dict[str, str]]
    ignored: list[dict[str, str]]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    sheet: str | None = None
    added: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)


def measure_masks(
    raw: Path, records: Sequence[Record], image_size: int | Literal["auto"]
) -> tuple[dict[str, MaskSizes], str]:
    """Return the sizes of the masks by defect type, and the working resolution as text.

    Args:
        raw: folder with the files of the records.
        records: records of a product.
        image_size: `segment.image_size`: side to which the segmenter resizes the images, or `auto`.
    """
    by_defect: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.mask is not None:
            by_defect[record.defect].append(record)
    masks = {key: [_measure(raw, record) for record in spread(group, _MAX_MASKS)] for key, group in by_defect.items()}
    if isinstance(image_size, int):
        side = image_size
        return {
            key: _summarise(group, [(side / m.height, side / m.width, side / max(m.height, m.width)) for m in group])
            for key, group in masks.items()
        }, f"{side}x{side}"
    sizes = {(record.height, record.width) for record in records}
    if not sizes:
        return {}, "auto"
    scale = choose_scale(sizes, [mask.narrowest for group in masks.values() for mask in group]).scale
    return {
        key: _summarise(group, [(scale, scale, scale)] * len(group)) for key, group in masks.items()
    }, f"scale {scale:.3g}"


def _measure(raw: Path, record: Record) -> _Mask:
    mask = load_mask(raw / str(record.mask))
    return _Mask(int(mask.sum()), int(component_widths(mask).min()), *mask.shape)


def _summarise(masks: list[_Mask], scales: Sequence[tuple[float, float, float]]) -> MaskSizes:
    """Return the sizes, given for each mask the scale of its height, of its width, and of the width of its defects."""
    areas = [mask.area for mask in masks]
    working = [mask.area * down * across for mask, (down, across, _) in zip(masks, scales, strict=True)]
    return MaskSizes(
        smallest=min(areas),
        median=int(np.median(areas)),
        largest=max(areas),
        narrowest=min(mask.narrowest for mask in masks),
        smallest_working=round(min(working), 1),
        width_working=round(min(mask.narrowest * scale for mask, (*_, scale) in zip(masks, scales, strict=True)), 1),
        coverage=round(max(mask.area / (mask.height * mask.width) for mask in masks), 3),
    )


def count_types(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return label, images, train and test by defect type, normal images first; `split` must be filled."""
    counts: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: (record.defect != GOOD, record.defect)):
        entry = counts.setdefault(
            record.defect, {"label": record.label or record.defect, "images": 0, "train": 0, "test": 0}
        )
        entry["images"] += 1
        if record.split:
            entry[record.split] += 1
    return counts


def count_sizes(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """Return (width, height, number of images), the most frequent first."""
    images = {record.image: (record.width, record.height) for record in records}
    return [(*size, number) for size, number in Counter(images.values()).most_common()]


def find_colour(raw: Path, records: Sequence[Record]) -> str:
    """Return `grey`, `colour` or both, of some images."""
    kinds = set()
    for record in spread(records, 16):
        with open_image(raw / record.image) as image:
            values = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST), np.int16)
        kinds.add("grey" if np.ptp(values, axis=2).max() == 0 else "colour")
    return " and ".join(sorted(kinds))


def find_unusual(counts: dict[str, dict[str, Any]], masks: dict[str, MaskSizes], sizes: int) -> list[str]:
    """Return what is unusual about a product, one line each, with what follows from it."""
    lines = []
    normals = counts.get(GOOD, {"images": 0, "test": 0})
    if 0 < normals["images"] < ADVISED_NORMALS:
        number = f"{normals['images']} normal image" + ("s" if normals["images"] > 1 else "")
        lines.append(f"{number}: synthetic pairs repeat few backgrounds; {ADVISED_NORMALS} or more are better")
    if normals["images"] and not normals["test"]:
        lines.append("no normal image is in test: image AUROC is not measured; add at least one more")
    defects = {key: entry["images"] for key, entry in counts.items() if key != GOOD}
    if not defects:
        lines.append("no defect type: only zero-shot defects (`zero_shot`) and anomaly detectors can use this product")
    elif max(defects.values()) > _IMBALANCE * min(defects.values()):
        rare, frequent = min(defects, key=defects.__getitem__), max(defects, key=defects.__getitem__)
        lines.append(
            f"{frequent} has {defects[frequent]} examples and {rare} {defects[rare]}: scores of {rare} vary more"
        )
    for defect, entry in masks.items():
        if entry.coverage > _LARGE_MASK:
            lines.append(
                f"{defect}: a mask covers {entry.coverage:.0%} of its image; look at the sheet, is it inverted?"
            )
    if sizes > 1:
        lines.append(f"the images have {sizes} different sizes")
    return lines


def give_advice(params: Params, masks: dict[str, MaskSizes], sizes: Sequence[tuple[int, int, int]]) -> list[str]:
    """Return advice about resolution for thin defects and large images, one line each."""
    if not sizes or not masks:
        return []
    side = params.segment.image_size
    width, height = max(((w, h) for w, h, _ in sizes), key=lambda size: size[0] * size[1])
    lines = []
    key = min(masks, key=lambda key: masks[key].width_working)
    thinnest = masks[key].width_working
    if isinstance(side, int) and thinnest < MIN_WIDTH:
        needed = int(-(-side * MIN_WIDTH / max(thinnest, 0.01) // 32) * 32)
        larger = f"segment.image_size: {needed} or auto" if needed <= _LARGEST_SEGMENTER else "segment.image_size: auto"
        lines.append(
            f"{key}: the narrowest defect is {masks[key].narrowest} px wide, {thinnest:g} px at {side} px "
            f"(segment.image_size); a segmenter needs {MIN_WIDTH} px; set {larger}, or cut the images into tiles"
        )
    if max(width, height) > _LARGE_IMAGE:
        lines.append(
            f"images of {width}x{height}: keep `canvas: local` of the diffusion methods, because `whole` shrinks a "
            "defect to a few pixels"
        )
    if isinstance(side, int) and max(width, height) > 2 * min(width, height):
        lines.append(
            f"images of {width}x{height} are squeezed to {side}x{side}; segment.image_size: auto keeps the shape"
        )
    return lines


def render_report(report: ProductReport) -> list[str]:
    """Return the report as lines of text."""
    lines = [f"{report.product}: layout {report.layout}, {report.images} images from {printable(report.source)}"]
    names = {key: _show(key, entry["label"]) for key, entry in report.counts.items()}
    width = max([len(name) for name in names.values()] + [8])
    lines += ["", f"  {'':{width}}  {'images':>7} {'train':>7} {'test':>7}"]
    for key, entry in report.counts.items():
        lines.append(f"  {names[key]:{width}}  {entry['images']:7} {entry['train']:7} {entry['test']:7}")
    sizes = [f"{w}x{h}" + (f" ({n})" if len(report.sizes) > 1 else "") for w, h, n in report.sizes]
    shown = ", ".join(sizes[:4]) + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")
    lines += ["", f"  size {shown} px; depth {report.depth}; {report.colour}"]
    if report.masks:
        title = f"at {report.working_resolution} px: smallest area, narrowest width"
        lines += ["", f"  {'mask, px':{width}}  {'smallest':>8} {'median':>8} {'largest':>8}   {title}"]
    for key, entry in report.masks.items():
        areas = f"{entry.smallest:8} {entry.median:8} {entry.largest:8}"
        lines.append(f"  {names[key]:{width}}  {areas}   {entry.smallest_working:g}, {entry.width_working:g}")
    lines += _section("unusual", [*report.unusual, *report.notes])
    lines += _section("advice", report.advice)
    lines += _section("left out", [f"{printable(e['image'])} ({e['reason']})" for e in report.left_out])
    twice = [f"{printable(e['image'])} (kept as {printable(e['same_as'])})" for e in report.duplicates]
    lines += _section("found twice, kept once", twice)
    lines += _section("not read", [f"{printable(e['path'])} ({e['reason']})" for e in report.ignored])
    if report.seconds:
        lines += ["", f"  estimated time of `defectory run` here: {describe_times(report.seconds)}"]
    if report.sheet is not None:
        lines.append(f"  contact sheet: {report.sheet}")
    return lines


def _section(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = len(entries) - MAX_LINES
    tail = [f"    ... and {more} more; --json prints all"] if more > 0 else []
    return ["", f"  {title}: {len(entries)}", *(f"    {entry}" for entry in entries[:MAX_LINES]), *tail]


def _show(key: str, label: str) -> str:
    return key if label == key else f"{printable(label)} ({key})"
