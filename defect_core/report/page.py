"""The HTML report: the table, what the synthetic defects look like, and how the segmenters learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.generators.registry import weights_folder
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.loading import split_records_of
from defect_core.project.paths import Project
from defect_core.report.adapted import mixed_sheet
from defect_core.report.leaderboard import OVER_PRODUCTS
from defect_core.report.nearest import mask_areas, nearest_pairs
from defect_core.report.plots import bar_chart, gain_chart, line_chart
from defect_core.report.sheets import contact_sheet
from defect_core.report.table import (
    CLASSIFY_COLUMNS,
    NOTHING,
    SEGMENT_COLUMNS,
    distance,
    gain,
    interval,
    number,
    percent,
)

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
        products=products,
        columns=SEGMENT_COLUMNS,
        prediction=prediction,
        said=any(entry["rho"] is not None for _, entry in prediction),
        unified=_tables(board.get("unified") or [], SEGMENT_COLUMNS),
        over_products=OVER_PRODUCTS,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _product_section(project: Project, board: dict[str, Any], product: str, folder: Path) -> dict[str, Any]:
    rows = [row for row in board["rows"] if row["product"] == product]
    section: dict[str, Any] = {
        "name": product,
        "table": _table(rows, SEGMENT_COLUMNS),
        "sweep": _sweep(rows),
        "classify": _tables([r for r in board.get("classify") or [] if r["product"] == product], CLASSIFY_COLUMNS),
        "chart": bar_chart(
            [(row["arm"], row["mean"].get("pixel_ap") or 0.0, row["std"].get("pixel_ap") or 0.0) for row in rows]
        ),
        "real": _real_sheets(project, product, folder),
        "adapted": _adapted(project, product, folder),
        "generators": [_generator_section(project, product, name, rows, folder) for name in project.params.generators],
        "maps": _map_sheet(project, product, folder),
        "detect": _detectors(project, product),
        "learning": line_chart(_curves(project, product), "training loss of the segmenter, first seed"),
    }
    return section


def _tables(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, Any]]:
    """One table per product, in the order of the rows."""
    products = dict.fromkeys(row["product"] for row in rows)
    return [_table([row for row in rows if row["product"] == product], columns) for product in products]


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> dict[str, Any]:
    """The rows of one judge on one product as texts. `confusions`: the classifier's answers, by arm."""
    first = next(iter(columns))
    # per-type recalls have a column each, after those that all products share
    recalls = [name for name in rows[0]["mean"] if name.startswith("recall_")]
    names = {**columns, **{name: f"recall of {name.removeprefix('recall_')}" for name in sorted(recalls)}}
    return {
        "product": rows[0]["product"],
        "labels": list(names.values()),
        "first": columns[first],
        "validated": any(row["best_on_validation"] for row in rows),
        "protocol": rows[0]["protocol"],
        "sets": any(row.get("scores") or row.get("missing") for row in rows),
        "confusions": [(row["arm"], row["classes"], row["confusion"]) for row in rows if row.get("confusion")],
        "rows": [_table_row(row, names, first) for row in rows],
    }


def _table_row(row: dict[str, Any], names: dict[str, str], first: str) -> dict[str, Any]:
    best = row["best_on_validation"] or NOTHING
    rate = row.get("acceptance_rate")
    return {
        "arm": row["arm"],
        "cells": [(percent(row, name), interval(row, name)) for name in names],
        "best": (percent(best, first), interval(best, first)) if row["best_on_validation"] else ("", ""),
        "gain": gain(row),
        "better": row["gain"] is not None and row["gain"] > 0,
        "synthetic": row["protocol"].get("synthetic"),
        "share": f"{100 * row['share']:.0f} %" if row["share"] else "",
        "frechet": distance(row),
        "accepted": "" if rate is None else f"{100 * rate:.0f} %",
    }


def _sweep(rows: list[dict[str, Any]]) -> str:
    """The gain over the synthetic share, of every generator (or mix) that has more than one share; "" for none."""
    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in rows:
        if row["base"] != BASELINE_ARM and row["gain"] is not None and row["share"]:
            lines.setdefault(row["base"], []).append((row["share"], row["gain"], row["gain_spread"]))
    swept = {name: [(0.0, 0.0, None), *line] for name, line in sorted(lines.items()) if len(line) > 1}
    return gain_chart(swept, "gain in pixel AP over the synthetic share of the defect places")


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


def _adapted(project: Project, product: str, folder: Path) -> dict[str, Any] | None:
    found = mixed_sheet(project, product)
    if found is None:
        return None
    caption = f"{len(found.images) - len(found.drawn)} real good images and {len(found.drawn)} drawn ones, mixed"
    return {
        **_sheet(folder, f"{product}-adapted", caption, found.images, [None] * len(found.images)),
        "drawn": ", ".join(str(place) for place in found.drawn),
        "curve": line_chart({"held out": found.held_out}, "loss of the backbone on held-out good images"),
    }


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
    own = next((row for row in rows if row["arm"] == generator), {})
    shown = [(name, number(value)) for name, value in (own.get("scores") or {}).items()]
    shown += [(name, f"undefined: {reason}") for name, reason in sorted((own.get("missing") or {}).items())]
    return {
        "name": generator,
        "sheets": sheets,
        "loss": line_chart({"loss": _smooth(training["loss"])}, "training loss") if training["loss"] else "",
        "scores": shown,
        "summary": json.loads((synthetic / "summary.json").read_text()),
        "normals": _normals(project, product, generator, folder),
        "nearest": _nearest_sheet(project, product, generator, folder),
        "areas": mask_areas(project, product, generator),
    }


def _nearest_sheet(project: Project, product: str, generator: str, folder: Path) -> dict[str, str] | None:
    found = nearest_pairs(project, product, generator)
    if not found.made:
        return None
    ratios = ", ".join("?" if ratio is None else f"{ratio:.2f}" for ratio in found.ratios)
    gap = [np.full((CELL, CELL, 3), 255, np.uint8)] * (-len(found.made) % COLUMNS)
    images = [*found.made, *gap, *found.real]
    caption = f"nearest to training images (above), and those images (below); distances: {ratios}"
    return _sheet(folder, f"{product}-{generator}-nearest", caption, images, [None] * len(images))


def _detectors(project: Project, product: str) -> dict[str, Any] | None:
    """What anomalib's detectors reached, with and without generated good images; None where there are none."""
    measured = project.path(f"metrics/detect/{product}.json")
    if project.params.detect is None or not measured.is_file():
        return None
    rows = json.loads(measured.read_text(encoding="utf-8"))["rows"]
    names = {name: label for name, label in SEGMENT_COLUMNS.items() if name in rows[0]["mean"]}
    cells = [
        (row["model"], row["normals"], row["protocol"], [(percent(row, n), interval(row, n)) for n in names])
        for row in rows
    ]
    return {"labels": list(names.values()), "rows": cells}


def _normals(project: Project, product: str, generator: str, folder: Path) -> dict[str, Any] | None:
    """Generated good images and their distances beside those of two halves of the real ones; None where none are."""
    source = project.path(f"data/normals/{product}/{generator}")
    measured = project.path(f"metrics/normals/{product}/{generator}.json")
    if project.params.normals is None or not measured.is_file():
        return None
    content = json.loads(measured.read_text(encoding="utf-8"))
    rows = _spread(read_manifest(source / "manifest.parquet"), COLUMNS)
    begun = [load_image(project.path(f"data/raw/{product}") / row.source_image) for row in rows]
    images = [load_image(source / row.image) for row in rows]
    blank = [np.full((CELL, CELL, 3), 255, np.uint8)] * (COLUMNS - len(rows))
    caption = "above, real good images; below, the good images drawn from each"
    sheet = [*begun, *blank, *images]
    return {
        **_sheet(folder, f"{product}-{generator}-normals", caption, sheet, [None] * len(sheet)),
        "scores": [
            (name, number(value), number(content["halves"].get(name))) for name, value in content["scores"].items()
        ],
        "missing": sorted(content["missing"].items()),
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
            images.append(heat(project.path(f"data/segment/{product}/{arm}") / by_name[name]))
            outlines.append(None)
    rows = " · ".join(["test image with its true mask", *arms])
    return _sheet(folder, f"{product}-maps", f"rows: {rows}", images, outlines)


def heat(path: Path) -> NDArray[np.uint8]:
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
