"""Inline pictures, plots and tables for the metadata of Dagster."""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import dagster as dg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.records import load_image, load_mask
from defect_core.report.sheets import contact_sheet

SHEET_COLUMNS = 8
SHEET_IMAGES = 24
MAX_PICTURE_BYTES = 72_000
"""Base64 adds a third, and the event log stores every picture: below 100 kB each."""
_JPEG_SETTINGS = ((88, 0), (75, 0), (60, 2), (40, 2), (20, 2))  # quality and chroma subsampling, best first

Item = TypeVar("Item")


def show_picture(pixels: NDArray[np.uint8], alternative: str) -> dg.MetadataValue:
    """Return an image, uint8 [H, W, 3], as an inline JPEG of at most `MAX_PICTURE_BYTES`.

    The last quality is used for an image that no quality brings below the limit.
    """
    image = Image.fromarray(pixels)
    content = b""
    for quality, subsampling in _JPEG_SETTINGS:
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=quality, subsampling=subsampling)
        content = stream.getvalue()
        if len(content) <= MAX_PICTURE_BYTES:
            break
    return _inline(content, "jpeg", alternative)


def show_sheet(folder: Path, files: Sequence[tuple[str, str | None]], alternative: str) -> dg.MetadataValue:
    """Return a contact sheet of images with mask outlines; `files` are (image, mask) paths below `folder`."""
    images = [load_image(folder / image) for image, _ in files]
    masks = [None if mask is None else load_mask(folder / mask) for _, mask in files]
    return show_picture(contact_sheet(images, masks, columns=SHEET_COLUMNS), alternative)


def show_curve(points: Sequence[tuple[float, float]], name: str) -> dg.MetadataValue:
    """Return a line plot of `name` over training steps as an inline PNG; `points` are (step, value)."""
    # Loading the definitions must not import matplotlib. A figure without pyplot needs no display and no closing.
    from matplotlib import style
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with style.context("default"):
        figure = Figure((4.8, 2.4), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=name)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) == 1 else "", linewidth=1)
        axes.grid(alpha=0.3)
        figure.savefig(stream, format="png")
    return _inline(stream.getvalue(), "png", f"{name} over steps")


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MetadataValue:
    """Return `markdown_table` as metadata."""
    return dg.MetadataValue.md(markdown_table(header, rows))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; floats have four significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def select_evenly(items: Iterable[tuple[str, Item]]) -> list[Item]:
    """Return at most `SHEET_IMAGES` of (kind, item): the first of each kind, then the second, sorted by kind."""
    kinds: dict[str, list[Item]] = defaultdict(list)
    for kind, item in items:
        kinds[kind].append(item)
    counts: Counter[str] = Counter()
    while counts.total() < SHEET_IMAGES and any(counts[kind] < len(kinds[kind]) for kind in kinds):
        for kind in sorted(kinds):
            if counts[kind] < len(kinds[kind]) and counts.total() < SHEET_IMAGES:
                counts[kind] += 1
    return [item for kind in sorted(kinds) for item in kinds[kind][: counts[kind]]]


def _inline(content: bytes, format_name: str, alternative: str) -> dg.MetadataValue:
    text = base64.b64encode(content).decode()
    return dg.MetadataValue.md(f"![{alternative}](data:image/{format_name};base64,{text})")


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
