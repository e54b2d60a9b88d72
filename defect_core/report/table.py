"""The leaderboard as data and on the terminal."""

import json
from typing import Any

from defect_core.errors import InputError
from defect_core.params import BASELINE_ARM
from defect_core.project import Project
from defect_core.report.prediction import predict_gain

WIDE = 136  # columns that the whole table needs
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
        scores over its seeds, their `interval` over test images, `best_on_validation` (means, or None), `gain` in
        pixel AP over `real_only`, `scores` of the arm's synthetic set (None for arms that are no generator),
        `protocol`. `zero_shot`, one per defect that a generator carried over to a product without examples of it:
        `product`, `arm`, `defect`, `from`, `generated`, `scores`. `prediction`: how well each image score ranks the
        gains (see `prediction.predict_gain`).
    """
    rows: list[dict[str, Any]] = []
    carried: list[dict[str, Any]] = []
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
                    "interval": entry.get("interval", {}),
                    "best_on_validation": entry.get("best_on_validation", {}).get("mean"),
                    "gain": None if None in (base, value) or arm == BASELINE_ARM else round(value - base, 6),
                    "scores": scores and scores["scores"]["pooled"],
                    "acceptance_rate": scores and scores["acceptance"]["acceptance_rate"],
                    "protocol": entry["protocol"],
                }
            )
            for defect, facts in sorted(((scores or {}).get("zero_shot") or {}).items()):
                carried.append({"product": product, "arm": arm, "defect": defect, **facts})
        rows += sorted(product_rows, key=lambda row: -(row["mean"]["pixel_ap"] or 0))
    return {"rows": rows, "zero_shot": carried, "prediction": predict_gain(rows, project.params.seed)}


def read_leaderboard(project: Project) -> dict[str, Any]:
    """The last written leaderboard. Raises InputError when there is none."""
    path = project.path("metrics/leaderboard.json")
    if not path.is_file():
        raise InputError("metrics/leaderboard.json: not there yet; `defectory run` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def print_leaderboard(board: dict[str, Any]) -> None:
    """Print one table per product, scores in percent, mean ± standard deviation over the seeds."""
    from rich.table import Table

    console = table_console()
    names = ["pixel_ap", "pixel_f1_max", "pro", "pixel_auroc", "image_auroc"]
    if console.width < WIDE:
        names = ["pixel_ap", "pixel_f1_max", "image_auroc"]
    for product in dict.fromkeys(row["product"] for row in board["rows"]):
        rows = [row for row in board["rows"] if row["product"] == product]
        seeds = rows[0]["protocol"]["seeds"]
        table = Table(title=f"{product}: segmenter on real test images, %, {seeds} seeds", title_justify="left")
        table.add_column("arm", no_wrap=True)
        wide = console.width >= WIDE
        intervals = ["95 % of AP"] if wide else []
        for label in ("gain", *intervals, *(SEGMENT_COLUMNS[name] for name in names), "Fréchet*"):
            table.add_column(label, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                row["arm"],
                "" if row["gain"] is None else f"{100 * row['gain']:+.1f}",
                *([interval(row, "pixel_ap")] if wide else []),
                *(percent(row, name) for name in names),
                "" if not row["scores"] else number(row["scores"].get("frechet_lite0")),
            )
        console.print(table)
    _print_prediction(console, board.get("prediction") or {})
    if board.get("zero_shot"):
        table = Table(title="defects carried over to products without examples of them", title_justify="left")
        for label in ("product", "defect", "from", "arm", "pairs", "Fréchet* to real ones"):
            table.add_column(label, no_wrap=True)
        for row in board["zero_shot"]:
            distance = number(row["scores"].get("frechet_lite0")) or "no real ones"
            table.add_row(*(row[key] for key in ("product", "defect", "from", "arm")), str(row["generated"]), distance)
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
    table_console().print(table)


def table_console() -> Any:
    """A console wide enough for the table where the output is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def percent(row: dict[str, Any], name: str) -> str:
    """`12.3 ± 0.4`, or why there is nothing to show."""
    value, spread = row["mean"].get(name), row["std"].get(name)
    if value is None:
        return "undefined"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def interval(row: dict[str, Any], name: str) -> str:
    """`10.1–15.0`, percent: what other test images could have given; empty where it is not known."""
    ends = (row.get("interval") or {}).get(name)
    return "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def number(value: float | int | None) -> str:
    """Four significant digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _print_prediction(console: Any, prediction: dict[str, dict[str, Any]]) -> None:
    """The scores that rank the gains, strongest first; nothing where no correlation is defined."""
    from rich.table import Table

    known = sorted(
        (entry for entry in prediction.items() if entry[1]["rho"] is not None), key=lambda e: -abs(e[1]["rho"])
    )
    if not known:
        return
    table = Table(title="which score predicts the gain?", title_justify="left")
    for label in ("score", "rank correlation", "p", "product-arm pairs"):
        table.add_column(label, no_wrap=True)
    for name, entry in known[:8]:
        table.add_row(name, f"{entry['rho']:+.2f}", f"{entry['p']:.3f}", str(entry["pairs"]))
    console.print(table)


def _read(project: Project, relative: str) -> dict[str, Any]:
    path = project.path(relative)
    if not path.is_file():
        raise InputError(f"{relative}: missing; run the stage that writes it (`defectory run`)")
    return json.loads(path.read_text(encoding="utf-8"))
