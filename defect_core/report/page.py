"""The HTML report: the table, what the synthetic defects look like, and how the segmenters learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.examples import split_records_of
from defect_core.generators.registry import weights_folder
from defect_core.project import Project
from defect_core.report.plots import bar_chart, line_chart
from defect_core.report.sheets import contact_sheet
from defect_core.report.table import SEGMENT_COLUMNS, interval, number, percent

COLUMNS = 8
CELL = 112
SHOWN_PER_DEFECT = 8


def write_report(project: Project, board: dict[str, Any], folder: Path) -> None:
    """Write `index.html` and its pictures into `folder`; it stands alone and holds no time and no path."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    products = [_product_section(project, board, product, folder) for product in project.params.products]
    environment = Environment(
        loader=PackageLoader("defect_core", "report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    prediction = sorted((board.get("prediction") or {}).items(), key=lambda entry: -abs(entry[1]["rho"] or 0))
    page = environment.get_template("page.html").render(
        products=products, columns=SEGMENT_COLUMNS, prediction=prediction
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _product_section(project: Project, board: dict[str, Any], product: str, folder: Path) -> dict[str, Any]:
    rows = [row for row in board["rows"] if row["product"] == product]
    section: dict[str, Any] = {
        "name": product,
        "rows": [_table_row(row) for row in rows],
        "protocol": rows[0]["protocol"],
        "chart": bar_chart(
            [(row["arm"], row["mean"]["pixel_ap"] or 0.0, row["std"]["pixel_ap"] or 0.0) for row in rows]
        ),
        "real": _real_sheets(project, product, folder),
        "generators": [_generator_section(project, product, name, rows, folder) for name in project.params.generators],
        "maps": _map_sheet(project, product, folder),
        "learning": line_chart(_curves(project, product), "training loss of the segmenter, first seed"),
    }
    return section


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    scores = row["scores"] or {}
    gain = row["gain"]
    return {
        "arm": row["arm"],
        "cells": [(percent(row, name), interval(row, name)) for name in SEGMENT_COLUMNS],
        "best": (row.get("best_on_validation") or {}).get("pixel_ap"),
        "gain": "" if gain is None else f"{100 * gain:+.1f}",
        "better": gain is not None and gain > 0,
        "synthetic": row["protocol"]["synthetic"],
        "frechet": number(scores.get("frechet_lite0")),
        "accepted": "" if row["acceptance_rate"] is None else f"{100 * row['acceptance_rate']:.0f} %",
    }


def _real_sheets(project: Project, product: str, folder: Path) -> list[dict[str, str]]:
    raw = project.path(f"data/raw/{product}")
    records = split_records_of(project, product, "train")
    sheets = []
    for defect in sorted({record.defect for record in records}):
        chosen = _spread([record for record in records if record.defect == defect], SHOWN_PER_DEFECT)
        images = [load_image(raw / record.image) for record in chosen]
        masks = [None if record.mask is None else load_mask(raw / record.mask) for record in chosen]
        sheets.append(_sheet(folder, f"{product}-real-{defect}", f"real: {defect}", images, masks))
    return sheets


def _generator_section(
    project: Project, product: str, generator: str, rows: list[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    synthetic = project.path(f"data/synthetic/{product}/{generator}")
    manifest = [row for row in read_manifest(synthetic / "manifest.parquet") if row.accepted]
    sheets = []
    for defect in sorted({row.defect for row in manifest}):
        chosen = [row for row in manifest if row.defect == defect][:SHOWN_PER_DEFECT]
        images = [load_image(synthetic / row.image) for row in chosen]
        masks = [load_mask(synthetic / row.mask) for row in chosen]
        sheets.append(
            _sheet(folder, f"{product}-{generator}-{defect}", f"synthetic: {defect}", images, masks, plain=True)
        )
    training = json.loads(project.path(f"{weights_folder(product, generator)}/training.json").read_text())
    scores = next((row["scores"] for row in rows if row["arm"] == generator and row["scores"]), None)
    return {
        "name": generator,
        "sheets": sheets,
        "loss": line_chart({"loss": _smooth(training["loss"])}, "training loss") if training["loss"] else "",
        "scores": [(name, number(value)) for name, value in (scores or {}).items()],
        "summary": json.loads((synthetic / "summary.json").read_text()),
    }


def _map_sheet(project: Project, product: str, folder: Path) -> dict[str, str] | None:
    """Test images, and under each the score map of every arm's first seed."""
    raw = project.path(f"data/raw/{product}")
    masks = {r.image: r.mask for r in split_records_of(project, product, "test")}
    arms = project.params.arms
    listed = {arm: json.loads(project.path(f"data/segment/{product}/{arm}/maps.json").read_text()) for arm in arms}
    shown = _spread(sorted(listed[arms[0]].items()), COLUMNS)
    if not shown:
        return None
    images: list[NDArray[np.uint8]] = []
    outlines: list[NDArray[np.bool_] | None] = []
    for _, name in shown:
        images.append(load_image(raw / name))
        outlines.append(load_mask(raw / masks[name]))
    for arm in arms:
        by_name = {name: file for file, name in listed[arm].items()}
        for _, name in shown:
            images.append(_heat(project.path(f"data/segment/{product}/{arm}") / by_name[name]))
            outlines.append(None)
    rows = " · ".join(["test image with its true mask", *arms])
    return _sheet(folder, f"{product}-maps", f"rows: {rows}", images, outlines)


def _heat(path: Path) -> NDArray[np.uint8]:
    """A score map as black, red, yellow, white."""
    value = np.asarray(PILImage.open(path), np.float32) / 255
    return np.rint(255 * np.clip(np.stack([3 * value, 3 * value - 1, 3 * value - 2], -1), 0, 1)).astype(np.uint8)


def _sheet(
    folder: Path,
    name: str,
    caption: str,
    images: list[NDArray[np.uint8]],
    masks: list[NDArray[np.bool_] | None],
    plain: bool = False,
) -> dict[str, str]:
    """Save a contact sheet; `plain` shows the images once more above, without the outlines."""
    if plain:
        gap = (-len(images)) % COLUMNS
        blank = [np.full((CELL, CELL, 3), 255, np.uint8)] * gap
        images, masks = [*images, *blank, *images], [*[None] * (len(images) + gap), *masks]
    save_png(contact_sheet(images, masks, columns=COLUMNS, cell=CELL), folder / f"images/{name}.png")
    return {"file": f"images/{name}.png", "caption": caption}


def _curves(project: Project, product: str) -> dict[str, list[tuple[float, float]]]:
    curves = {}
    for arm in project.params.arms:
        first = json.loads(project.path(f"data/segment/{product}/{arm}/curves.json").read_text())[0]["points"]
        curves[arm] = [(p["step"], p["loss"]) for p in first]
    return curves


def _smooth(values: list[float], window: int = 15) -> list[tuple[float, float]]:
    window = min(window, max(1, len(values) // 4))
    means = np.convolve(values, np.ones(window) / window, "valid")
    return [(i + window, float(v)) for i, v in enumerate(means)]


def _spread(items: list, count: int) -> list:
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
