"""Contact sheets of the report: real images, synthetic images, generated normal images and score maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.guarded import read_json
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import GOOD, load_image, load_mask, save_png
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder
from defect_core.report.nearest import nearest_pairs
from defect_core.report.sheets import contact_sheet, read_score_map
from defect_core.report.table import format_number

COLUMNS = 8
CELL = 112  # pixels
SHOWN_PER_DEFECT = 8


def real_sheets(project: Project, product: str, folder: Path) -> list[dict[str, str]]:
    """Write one sheet of training images per defect and of the normal ones."""
    raw = project.path(f"data/raw/{product}")
    records = split_records_of(project, product, "train")
    sheets = []
    for defect in sorted({record.defect for record in records}):
        chosen = _evenly_spaced([record for record in records if record.defect == defect], SHOWN_PER_DEFECT)
        images = [load_image(raw / record.image) for record in chosen]
        masks = [None if record.mask is None else load_mask(raw / record.mask) for record in chosen]
        caption = f"real: {'normal' if defect == GOOD else defect}"
        sheets.append(write_sheet(folder, f"{product}-real-{defect}", caption, images, masks))
    return sheets


def synthetic_sheets(project: Project, product: str, generator: str, folder: Path) -> list[dict[str, str]]:
    """Write one sheet of accepted pairs per defect, first without and then with the outlines of the masks."""
    synthetic = project.path(synthetic_folder(product, generator))
    accepted = [row for row in manifest_rows(synthetic / "manifest.parquet") if row.accepted]
    sheets = []
    for defect in sorted({row.defect for row in accepted}):
        chosen = [row for row in accepted if row.defect == defect][:SHOWN_PER_DEFECT]
        images = [load_image(synthetic / str(row.image)) for row in chosen]
        masks = [load_mask(synthetic / str(row.mask)) for row in chosen]
        blank = _blank(-len(images) % COLUMNS)
        without = [None] * (len(images) + len(blank))
        name = f"{product}-{generator}-{defect}"
        sheets.append(write_sheet(folder, name, f"synthetic: {defect}", [*images, *blank, *images], [*without, *masks]))
    return sheets


def nearest_sheet(project: Project, product: str, generator: str, folder: Path) -> dict[str, str] | None:
    """Write a sheet of generated images above their nearest training images; None without pairs."""
    pairs = nearest_pairs(project, product, generator)
    if not pairs.generated:
        return None
    ratios = ", ".join("?" if ratio is None else f"{ratio:.2f}" for ratio in pairs.ratios)
    images = [*pairs.generated, *_blank(-len(pairs.generated) % COLUMNS), *pairs.real]
    caption = f"generated images (above) and their nearest training images (below); distances: {ratios}"
    return write_sheet(folder, f"{product}-{generator}-nearest", caption, images)


def normals_section(project: Project, product: str, generator: str, folder: Path) -> dict[str, Any] | None:
    """Return the sheet of generated normal images and their scores; None without such images.

    Each score has beside it the same score between two halves of the real normal images.
    """
    source = project.path(f"data/normals/{product}/{generator}")
    metrics = project.path(f"metrics/normals/{product}/{generator}.json")
    if project.params.normals is None or not metrics.is_file():
        return None
    content = read_json(metrics)
    rows = _evenly_spaced(manifest_rows(source / "manifest.parquet"), COLUMNS)
    real = [load_image(project.path(f"data/raw/{product}") / str(row.source_image)) for row in rows]
    images = [*real, *_blank(COLUMNS - len(rows)), *(load_image(source / str(row.image)) for row in rows)]
    caption = "real normal images (above) and the normal images generated from them (below)"
    halves = content["halves"]
    return {
        **write_sheet(folder, f"{product}-{generator}-normals", caption, images),
        "scores": [(n, format_number(value), format_number(halves.get(n))) for n, value in content["scores"].items()],
        "missing": sorted(content["missing"].items()),
    }


def score_map_sheet(project: Project, product: str, folder: Path) -> dict[str, str] | None:
    """Write a sheet of test images, and below each the score map of every arm's first seed; None without maps."""
    raw = project.path(f"data/raw/{product}")
    masks = {record.image: record.mask for record in split_records_of(project, product, "test")}
    arms = project.params.arms
    folders = {arm: project.path(f"data/segment/{product}/{arm}") for arm in arms}
    maps = {arm: read_json(folders[arm] / "maps.json") for arm in arms}
    shown = [name for _, name in _evenly_spaced(sorted(maps[arms[0]].items()), COLUMNS)]
    if not shown:
        return None
    blank = _blank(COLUMNS - len(shown))
    images = [*(load_image(raw / name) for name in shown), *blank]
    outlines: list[NDArray[np.bool_] | None] = [load_mask(raw / str(masks[name])) for name in shown]
    for arm in arms:
        files = {name: file for file, name in maps[arm].items()}
        images += [*(read_score_map(folders[arm] / files[name]) for name in shown), *blank]
    rows = " · ".join(["test image with its true mask", *arms])
    outlines += [None] * (len(images) - len(outlines))
    return write_sheet(folder, f"{product}-maps", f"rows: {rows}", images, outlines)


def write_sheet(
    folder: Path,
    name: str,
    caption: str,
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_] | None] | None = None,
) -> dict[str, str]:
    """Write a contact sheet to `images/NAME.png` and return its `file` and `caption`.

    Args:
        folder: of the report.
        name: file name without its ending.
        caption: text below the sheet.
        images: see `contact_sheet`.
        masks: see `contact_sheet`; None for no outlines.
    """
    sheet = contact_sheet(images, [None] * len(images) if masks is None else masks, columns=COLUMNS, cell=CELL)
    save_png(sheet, folder / f"images/{name}.png")
    return {"file": f"images/{name}.png", "caption": caption}


def _blank(count: int) -> list[NDArray[np.uint8]]:
    return [np.full((CELL, CELL, 3), 255, np.uint8)] * count


def _evenly_spaced(items: list, count: int) -> list:
    """Return up to `count` items at equal distances."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
