"""The HTML report: leaderboard tables, charts and contact sheets of every product."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.guarded import read_json, read_json_list
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project, synthetic_folder
from defect_core.report.adapted import mixed_sheet
from defect_core.report.galleries import (
    nearest_sheet,
    normals_section,
    real_sheets,
    score_map_sheet,
    synthetic_sheets,
    write_sheet,
)
from defect_core.report.inspection import inspection_section
from defect_core.report.leaderboard import Row
from defect_core.report.nearest import mask_areas
from defect_core.report.plots import (
    DARK_THEME,
    LIGHT_THEME,
    ArmStyle,
    Point,
    arm_styles,
    bar_chart,
    gain_chart,
    line_chart,
)
from defect_core.report.table import (
    CLASSIFY_COLUMNS,
    NO_SCORES,
    SEGMENT_COLUMNS,
    format_gain,
    format_interval,
    format_number,
    format_score,
    format_set_score,
)
from defect_core.report.templates import write_page

_SMOOTHING = 15  # steps of the moving average of a generator's training loss


def write_report(project: Project, leaderboard: Mapping[str, Any], folder: Path) -> None:
    """Write `index.html` and its images into a folder.

    The page refers to no file outside the folder and contains no date, so equal results give equal bytes.

    Args:
        project: of the images and training curves.
        leaderboard: see `make_leaderboard`.
        folder: an existing folder.
    """
    styles = arm_styles([project.params.arm(name) for name in project.params.arms])
    products = [_product_section(project, leaderboard, product, folder, styles) for product in project.params.products]
    prediction = sorted((leaderboard.get("prediction") or {}).items(), key=lambda entry: -abs(entry[1]["rho"] or 0))
    values = {
        "products": products,
        "prediction": prediction,
        "is_predicted": any(entry["rho"] is not None for _, entry in prediction),
        "unified": _tables(leaderboard.get("unified") or [], SEGMENT_COLUMNS),
        "themes": {"light": LIGHT_THEME, "dark": DARK_THEME},
    }
    write_page(folder / "index.html", "page.html", values)


def _product_section(
    project: Project,
    leaderboard: Mapping[str, Any],
    product: str,
    folder: Path,
    styles: Mapping[str, ArmStyle],
) -> dict[str, Any]:
    rows = [row for row in leaderboard["rows"] if row["product"] == product]
    classified = [row for row in leaderboard.get("classify") or [] if row["product"] == product]
    bars = {row["arm"]: Point(0.0, row["mean"].get("pixel_ap"), row["std"].get("pixel_ap")) for row in rows}
    curves = _training_curves(project, product)
    return {
        "name": product,
        "table": _table(rows, SEGMENT_COLUMNS),
        "sweep": _sweep_chart(rows, styles),
        "inspection": inspection_section(rows),
        "classify": _tables(classified, CLASSIFY_COLUMNS),
        "chart": bar_chart(bars, styles, f"pixel AP on {product}, %, mean ± standard deviation over the seeds"),
        "real": real_sheets(project, product, folder),
        "adapted": _adapted_section(project, product, folder),
        "generators": [
            _generator_section(project, product, name, rows, folder, styles) for name in project.params.generators
        ],
        "maps": score_map_sheet(project, product, folder),
        "detect": _detector_section(project, product),
        "learning": line_chart(curves, styles, f"training loss of the segmenter on {product}, first seed"),
    }


def _tables(rows: Sequence[Row], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one table per product, in the order of the rows."""
    products = dict.fromkeys(row["product"] for row in rows)
    return [_table([row for row in rows if row["product"] == product], columns) for product in products]


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the rows of one downstream model on one product as text; `confusions` has the classifier's tables."""
    first = next(iter(columns))
    # Recalls differ between products, so their columns follow those that all products share.
    recalls = [name for name in rows[0]["mean"] if name.startswith("recall_")]
    names = {**columns, **{name: f"recall of {name.removeprefix('recall_')}" for name in sorted(recalls)}}
    return {
        "product": rows[0]["product"],
        "labels": list(names.values()),
        "first": columns[first],
        "has_validation": any(row["best_on_validation"] for row in rows),
        "protocol": rows[0]["protocol"],
        "has_sets": any(row.get("scores") or row.get("missing") for row in rows),
        "confusions": [(row["arm"], row["classes"], row["confusion"]) for row in rows if row.get("confusion")],
        "rows": [_table_row(row, names, first) for row in rows],
    }


def _table_row(row: Row, names: Mapping[str, str], first: str) -> dict[str, Any]:
    best = row["best_on_validation"] or NO_SCORES
    rate = row.get("acceptance_rate")
    return {
        "arm": row["arm"],
        "cells": [(format_score(row, name), format_interval(row, name)) for name in names],
        "best": (format_score(best, first), format_interval(best, first)) if row["best_on_validation"] else ("", ""),
        "gain": format_gain(row),
        "is_better": row["gain"] is not None and row["gain"] > 0,
        "synthetic": row["protocol"].get("synthetic"),
        "fraction": f"{100 * row['share']:.0f} %" if row["share"] else "",
        "frechet": format_set_score(row),
        "accepted": "" if rate is None else f"{100 * rate:.0f} %",
    }


def _sweep_chart(rows: Sequence[Row], styles: Mapping[str, ArmStyle]) -> str:
    """Return the gain over the synthetic fraction, for every base arm with two or more fractions; "" for none."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        if row["base"] != BASELINE_ARM and row["gain"] is not None and row["share"]:
            lines.setdefault(row["base"], []).append(Point(row["share"], row["gain"], row["gain_spread"]))
    swept = {name: [Point(0.0, 0.0, None), *points] for name, points in sorted(lines.items()) if len(points) > 1}
    return gain_chart(swept, styles, "gain in pixel AP, %, over the synthetic fraction")


def _adapted_section(project: Project, product: str, folder: Path) -> dict[str, Any] | None:
    sheet = mixed_sheet(project, product)
    if sheet is None:
        return None
    real = len(sheet.images) - len(sheet.generated)
    caption = f"{real} real normal images and {len(sheet.generated)} generated ones in random order"
    return {
        **write_sheet(folder, f"{product}-adapted", caption, sheet.images),
        "generated": ", ".join(str(position) for position in sheet.generated),
        "curve": line_chart({"held out": sheet.held_out}, {}, "loss of the backbone on held-out normal images"),
    }


def _generator_section(
    project: Project,
    product: str,
    generator: str,
    rows: Sequence[Row],
    folder: Path,
    styles: Mapping[str, ArmStyle],
) -> dict[str, Any]:
    synthetic = project.path(synthetic_folder(product, generator))
    folder_of_weights = project.path(project.params.generator_folder(product, generator))
    training = read_json(folder_of_weights / "training.json", ("loss",))
    row = next((row for row in rows if row["arm"] == generator), {})
    scores = [(name, format_number(value)) for name, value in (row.get("scores") or {}).items()]
    scores += [(name, f"undefined: {reason}") for name, reason in sorted((row.get("missing") or {}).items())]
    losses = {generator: _moving_average(training["loss"])} if training["loss"] else {}
    return {
        "name": generator,
        "sheets": synthetic_sheets(project, product, generator, folder),
        "loss": line_chart(losses, styles, f"training loss of {generator}, moving average"),
        "scores": scores,
        "summary": read_json(synthetic / "summary.json"),
        "normals": normals_section(project, product, generator, folder),
        "nearest": nearest_sheet(project, product, generator, folder),
        "areas": mask_areas(project, product, generator),
    }


def _detector_section(project: Project, product: str) -> dict[str, Any] | None:
    """Return the scores of the anomalib detectors with and without generated normal images; None without detectors."""
    metrics = project.path(f"metrics/detect/{product}.json")
    if project.params.detect is None or not metrics.is_file():
        return None
    rows = read_json(metrics, ("rows",))["rows"]
    names = {name: label for name, label in SEGMENT_COLUMNS.items() if name in rows[0]["mean"]}
    cells = [
        (
            row["model"],
            row["normals"],
            row["protocol"],
            [(format_score(row, n), format_interval(row, n)) for n in names],
        )
        for row in rows
    ]
    return {"labels": list(names.values()), "rows": cells}


def _training_curves(project: Project, product: str) -> dict[str, list[tuple[float, float]]]:
    """Return (step, loss) of every arm's first seed."""
    curves = {}
    for arm in project.params.arms:
        path = project.path(f"data/segment/{product}/{arm}/curves.json")
        points = read_json_list(path)[0]["points"]
        curves[arm] = [(point["step"], point["loss"]) for point in points]
    return curves


def _moving_average(values: Sequence[float], window: int = _SMOOTHING) -> list[tuple[float, float]]:
    """Return (step, mean of the last `window` values); the window is at most a quarter of the values."""
    window = min(window, max(1, len(values) // 4))
    means = np.convolve(values, np.ones(window) / window, "valid")
    return [(i + window, float(v)) for i, v in enumerate(means)]
