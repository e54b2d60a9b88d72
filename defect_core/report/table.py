"""The leaderboard on the terminal, and how its numbers are written wherever they are shown."""

from collections.abc import Sequence
from typing import Any

WIDE = 150  # columns that the whole table needs
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
CLASSIFY_COLUMNS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
UNDEFINED = "undefined"


def print_leaderboard(board: dict[str, Any]) -> None:
    """Print one table per product and judge, scores in percent, mean ± standard deviation over the seeds; below it why
    a score is undefined.
    """
    console = table_console()
    wide = console.width >= WIDE
    names = ["pixel_ap", "pixel_f1_max", *(["pro", "pixel_auroc"] if wide else []), "image_auroc"]
    segment = {name: SEGMENT_COLUMNS[name] for name in names}
    _print_rows(console, "{}: segmenter on real test images", board["rows"], segment, wide, sets=True)
    _print_rows(console, "{}: one segmenter for all products", board.get("unified") or [], segment, wide)
    _print_rows(console, "{}: classifier of defect types", board.get("classify") or [], CLASSIFY_COLUMNS, wide)
    _print_prediction(console, board.get("prediction") or {})
    _print_carried(console, board.get("zero_shot") or [])
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
    """`12.3 ± 0.4`, or `undefined: ` and why."""
    value, spread = row["mean"].get(name), row["std"].get(name)
    if value is None:
        return _undefined(row, name)
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def gain(row: dict[str, Any]) -> str:
    """`+1.2`, percent; `undefined: ` and why; empty for the arm that gains are over."""
    if row["gain"] is None:
        return _undefined(row, "gain") if "gain" in (row.get("reasons") or {}) else ""
    return f"{100 * row['gain']:+.1f}"


def interval(row: dict[str, Any], name: str) -> str:
    """`10.1–15.0`, percent: what other test images could have given; empty where it is not known."""
    ends = (row.get("interval") or {}).get(name)
    return "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def distance(row: dict[str, Any], name: str = "frechet_lite0") -> str:
    """A score of the arm's synthetic set, or `undefined: ` and why; empty for an arm without a set of its own."""
    if not row.get("scores") and not row.get("missing"):
        return ""
    value = (row.get("scores") or {}).get(name)
    return number(value) if value is not None else f"{UNDEFINED}: {(row.get('missing') or {}).get(name, 'not scored')}"


def number(value: float | int | None) -> str:
    """Four significant digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _undefined(row: dict[str, Any], name: str) -> str:
    reason = (row.get("reasons") or {}).get(name)
    return f"{UNDEFINED}: {reason}" if reason else UNDEFINED


def _print_rows(
    console: Any, title: str, rows: Sequence[dict[str, Any]], columns: dict[str, str], wide: bool, sets: bool = False
) -> None:
    from rich.table import Table

    first = next(iter(columns))
    for product in dict.fromkeys(row["product"] for row in rows):
        own = [row for row in rows if row["product"] == product]
        seeds = own[0]["protocol"].get("seeds", 0)
        plural = "" if seeds == 1 else "s"
        table = Table(title=f"{title.format(product)}, %, {seeds} seed{plural}", title_justify="left")
        table.add_column("arm", no_wrap=True)
        validated = any(row.get("best_on_validation") for row in own)
        labels = ["gain", *([f"95 % of {columns[first]}"] if wide else []), *columns.values()]
        labels += ["best on val."] if validated else []
        for label in labels + (["Fréchet*"] if sets else []):
            table.add_column(label, justify="right", no_wrap=True)
        notes: dict[str, None] = {}
        for row in own:
            cells = {"gain": gain(row)}
            cells |= {"interval": interval(row, first)} if wide else {}
            cells |= {name: percent(row, name) for name in columns}
            cells |= {"best": percent(row["best_on_validation"] or NOTHING, first)} if validated else {}
            cells |= {"set": distance(row)} if sets else {}
            short = [text.partition(":")[0] for text in cells.values()]
            table.add_row(row["arm"], *short)
            for text in cells.values():
                if ": " in text:
                    notes[f"{row['arm']}: {text}"] = None
        console.print(table)
        for note in notes:
            console.print(f"  {note}", highlight=False, soft_wrap=True)


NOTHING: dict[str, Any] = {"mean": {}, "std": {}}


def _print_prediction(console: Any, prediction: dict[str, dict[str, Any]]) -> None:
    """The scores that rank the gains, strongest first; why there is no correlation where none is defined."""
    from rich.table import Table

    if not prediction:
        return
    known = sorted(
        (entry for entry in prediction.items() if entry[1]["rho"] is not None), key=lambda e: -abs(e[1]["rho"])
    )
    if not known:
        pairs = max(entry["pairs"] for entry in prediction.values())
        reasons = sorted({entry["reason"] for entry in prediction.values() if entry["pairs"] == pairs})
        console.print(f"Which score predicts the gain? Not said: {reasons[0]}.", soft_wrap=True)
        return
    table = Table(title="which score predicts the gain?", title_justify="left")
    for label in ("score", "rank correlation", "95 %", "p", "product-arm pairs"):
        table.add_column(label, no_wrap=True)
    for name, entry in known[:8]:
        low, high = entry["interval"]
        ends = f"{low:+.2f} to {high:+.2f}"
        table.add_row(name, f"{entry['rho']:+.2f}", ends, f"{entry['p']:.3f}", str(entry["pairs"]))
    console.print(table)


def _print_carried(console: Any, rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table(title="defects carried over to products without examples of them", title_justify="left")
    for label in ("product", "defect", "from", "arm", "pairs", "Fréchet* to real ones"):
        table.add_column(label, no_wrap=True)
    for row in rows:
        near = number(row["scores"].get("frechet_lite0")) or "no real ones"
        table.add_row(*(row[key] for key in ("product", "defect", "from", "arm")), str(row["generated"]), near)
    console.print(table)
