"""The leaderboard as data and on the terminal."""

import json
from typing import Any

from defect_core.errors import InputError
from defect_core.params import BASELINE_ARM
from defect_core.project import Project

WIDE = 124  # columns that the whole table needs
SEGMENT_COLUMNS = {
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "F1-max",
    "pro": "PRO",
    "iou": "IoU",
    "pixel_auroc": "pixel AUROC",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
}


def make_leaderboard(project: Project) -> dict[str, Any]:
    """Collect all metrics of a project.

    Returns:
        `rows`, one per product and arm, best pixel AP first within a product: `mean` and `std` of the segmenter's
        scores over its seeds, `gain` in pixel AP over `real_only`, `scores` of the arm's synthetic set (None for
        arms that are no generator), `protocol`.
    """
    rows = []
    for product in project.params.products:
        found = [_read(project, f"metrics/segment/{product}/{arm}.json") for arm in project.params.arms]
        base = next((entry["mean"]["pixel_ap"] for entry in found if entry["arm"] == BASELINE_ARM), None)
        product_rows = []
        for entry in found:
            arm, value = entry["arm"], entry["mean"]["pixel_ap"]
            scores = _read(project, f"metrics/score/{product}/{arm}.json") if arm in project.params.generators else None
            product_rows.append(
                {
                    "product": product,
                    "arm": arm,
                    "mean": entry["mean"],
                    "std": entry["std"],
                    "gain": None if None in (base, value) or arm == BASELINE_ARM else round(value - base, 6),
                    "scores": scores and scores["scores"]["pooled"],
                    "acceptance_rate": scores and scores["acceptance"]["acceptance_rate"],
                    "protocol": entry["protocol"],
                }
            )
        rows += sorted(product_rows, key=lambda row: -(row["mean"]["pixel_ap"] or 0))
    return {"rows": rows}


def read_leaderboard(project: Project) -> dict[str, Any]:
    """The last written leaderboard. Raises InputError when there is none."""
    path = project.path("metrics/leaderboard.json")
    if not path.is_file():
        raise InputError("metrics/leaderboard.json: not there yet; `defectory run` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def print_leaderboard(board: dict[str, Any]) -> None:
    """Print one table per product, scores in percent, mean ± standard deviation over the seeds."""
    from rich.table import Table

    console = _console()
    names = ["pixel_ap", "pixel_f1_max", "pro", "iou", "pixel_auroc", "image_auroc"]
    if console.width < WIDE:
        names = ["pixel_ap", "pixel_f1_max", "image_auroc"]
    for product in dict.fromkeys(row["product"] for row in board["rows"]):
        rows = [row for row in board["rows"] if row["product"] == product]
        seeds = rows[0]["protocol"]["seeds"]
        table = Table(title=f"{product}: segmenter on real test images, %, {seeds} seeds", title_justify="left")
        table.add_column("arm", no_wrap=True)
        for label in ("gain", *(SEGMENT_COLUMNS[name] for name in names), "Fréchet*"):
            table.add_column(label, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                row["arm"],
                "" if row["gain"] is None else f"{100 * row['gain']:+.1f}",
                *(percent(row, name) for name in names),
                "" if not row["scores"] else number(row["scores"].get("frechet_lite0")),
            )
        console.print(table)
    console.print(
        "* Fréchet distance on ImageNet EfficientNet-Lite0 features, real test defects; not comparable to FID."
    )


def print_scores(result: dict[str, Any]) -> None:
    """Print the scores of two folders."""
    from rich.table import Table

    table = Table(title=f"scores, {result['protocol']['image_size']} px", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in result["scores"]["pooled"].items():
        table.add_row(name, number(value))
    for name, reason in result["missing"].items():
        table.add_row(name, f"not computed: {reason}")
    _console().print(table)


def percent(row: dict[str, Any], name: str) -> str:
    """`12.3 ± 0.4`, or why there is nothing to show."""
    value, spread = row["mean"].get(name), row["std"].get(name)
    if value is None:
        return "undefined"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def number(value: float | int | None) -> str:
    """Four significant digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _console() -> Any:
    """A console wide enough for the table where the output is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _read(project: Project, relative: str) -> dict[str, Any]:
    path = project.path(relative)
    if not path.is_file():
        raise InputError(f"{relative}: missing; run the stage that writes it (`defectory run`)")
    return json.loads(path.read_text(encoding="utf-8"))
