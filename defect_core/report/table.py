"""The leaderboard on the terminal, and the text of its numbers in tables and pages."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defect_core.report.inspection import SHOWN_TARGET, UNDEFINED, extrapolation_notes, format_escapes, target_name

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 150  # characters that the whole table needs
_CORRELATIONS_SHOWN = 8
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
NO_SCORES: dict[str, Any] = {"mean": {}, "std": {}}


def print_leaderboard(leaderboard: Mapping[str, Any]) -> None:
    """Print one table per product and downstream model, and below it the reason for each undefined score.

    Scores are in percent, mean ± standard deviation over the seeds.

    Args:
        leaderboard: see `make_leaderboard`.
    """
    console = make_console()
    wide = console.width >= _WIDE
    names = ["pixel_ap", "pixel_f1_max", *(["pro", "pixel_auroc"] if wide else []), "image_auroc"]
    segment = {name: SEGMENT_COLUMNS[name] for name in names}
    unified, classified = leaderboard.get("unified") or [], leaderboard.get("classify") or []
    _print_model(console, "{}: segmenter on real test images", leaderboard["rows"], segment, with_set=True)
    _print_model(console, "{}: one segmenter for all products", unified, segment)
    _print_model(console, "{}: classifier of defect types", classified, CLASSIFY_COLUMNS)
    _print_prediction(console, leaderboard.get("prediction") or {})
    _print_zero_shot(console, leaderboard.get("zero_shot") or [])
    console.print(
        "* Fréchet distance on ImageNet EfficientNet-Lite0 features, real test defects; not comparable to FID."
    )


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the scores of a folder of generated images.

    Args:
        result: `scores`, `missing` and `protocol`, as in the JSON output of `defectory score`.
    """
    from rich.table import Table

    table = Table(title=f"scores, {result['protocol']['image_size']} px", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in result["scores"]["pooled"].items():
        table.add_row(name, format_number(value))
    for name, reason in result["missing"].items():
        table.add_row(name, f"not computed: {reason}")
    make_console().print(table)


def make_console() -> "Console":
    """Return a console that is wide enough for the tables where the output is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def print_notes(console: "Console", notes: Sequence[str]) -> None:
    """Print one note per line, each once."""
    for note in dict.fromkeys(notes):
        console.print(f"  {note}", highlight=False, soft_wrap=True)


def format_score(row: Mapping[str, Any], name: str) -> str:
    """Return a score in percent as `12.3 ± 0.4`, or `undefined: ` and the reason."""
    value, std = row["mean"].get(name), row["std"].get(name)
    if value is None:
        return _undefined(row, name)
    return f"{100 * value:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def format_gain(row: Mapping[str, Any]) -> str:
    """Return the gain in percent as `+1.2`, or `undefined: ` and the reason; "" for the baseline."""
    if row["gain"] is None:
        return _undefined(row, "gain") if "gain" in (row.get("reasons") or {}) else ""
    return f"{100 * row['gain']:+.1f}"


def format_interval(row: Mapping[str, Any], name: str) -> str:
    """Return the interval of a score over resampled test images in percent as `10.1–15.0`; "" without one."""
    ends = (row.get("interval") or {}).get(name)
    return "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def format_set_score(row: Mapping[str, Any], name: str = "frechet_lite0") -> str:
    """Return a score of the arm's synthetic set, or `undefined: ` and the reason; "" for an arm without its own set."""
    if not row.get("scores") and not row.get("missing"):
        return ""
    value = (row.get("scores") or {}).get(name)
    if value is not None:
        return format_number(value)
    return f"{UNDEFINED}: {(row.get('missing') or {}).get(name, 'not scored')}"


def format_number(value: float | None) -> str:
    """Return a number with four significant digits; "" for None."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _undefined(row: Mapping[str, Any], name: str) -> str:
    reason = (row.get("reasons") or {}).get(name)
    return f"{UNDEFINED}: {reason}" if reason else UNDEFINED


def _print_model(
    console: "Console",
    title: str,
    rows: Sequence[dict[str, Any]],
    columns: Mapping[str, str],
    with_set: bool = False,
) -> None:
    """Print the rows of one downstream model, one table per product; `with_set` adds the score of the synthetic set."""
    from rich.table import Table

    for product in dict.fromkeys(row["product"] for row in rows):
        own = [row for row in rows if row["product"] == product]
        seeds = own[0]["protocol"].get("seeds", 0)
        plural = "" if seeds == 1 else "s"
        table = Table(title=f"{title.format(product)}, %, {seeds} seed{plural}", title_justify="left")
        table.add_column("arm", no_wrap=True)
        cells = _cells(own, columns, console.width >= _WIDE, with_set)
        for label in cells:
            table.add_column(label, justify="right", no_wrap=True)
        notes = []
        for row in own:
            texts = [cell(row) for cell in cells.values()]
            table.add_row(row["arm"], *(text.partition(":")[0] for text in texts))
            notes += [f"{row['arm']}: {text}" for text in texts if ": " in text]
        console.print(table)
        print_notes(console, [*notes, *extrapolation_notes(own)])


def _cells(
    rows: Sequence[dict[str, Any]], columns: Mapping[str, str], wide: bool, with_set: bool
) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Return by column label the function that writes a row's cell."""
    first = next(iter(columns))
    cells: dict[str, Callable[[dict[str, Any]], str]] = {"gain": format_gain}
    if wide:
        cells[f"95 % of {columns[first]}"] = lambda row: format_interval(row, first)
    for name, label in columns.items():
        cells[label] = lambda row, name=name: format_score(row, name)
    if any(row.get("best_on_validation") for row in rows):
        cells["best on val."] = lambda row: format_score(row["best_on_validation"] or NO_SCORES, first)
    if any(row.get("inspection") for row in rows):
        cells[f"escapes at {target_name(SHOWN_TARGET)}"] = format_escapes
    if with_set:
        cells["Fréchet*"] = format_set_score
    return cells


def _print_prediction(console: "Console", prediction: Mapping[str, dict[str, Any]]) -> None:
    """Print the scores with the strongest correlations, or the reason where none is defined."""
    from rich.table import Table

    if not prediction:
        return
    known = sorted(
        (entry for entry in prediction.items() if entry[1]["rho"] is not None), key=lambda e: -abs(e[1]["rho"])
    )
    if not known:
        pairs = max(entry["pairs"] for entry in prediction.values())
        reasons = sorted({entry["reason"] for entry in prediction.values() if entry["pairs"] == pairs})
        console.print(f"Which score predicts the gain? Undefined: {reasons[0]}.", soft_wrap=True)
        return
    table = Table(title="which score predicts the gain?", title_justify="left")
    for label in ("score", "rank correlation", "95 %", "p", "product-arm pairs"):
        table.add_column(label, no_wrap=True)
    for name, entry in known[:_CORRELATIONS_SHOWN]:
        low, high = entry["interval"]
        ends = f"{low:+.2f} to {high:+.2f}"
        table.add_row(name, f"{entry['rho']:+.2f}", ends, f"{entry['p']:.3f}", str(entry["pairs"]))
    console.print(table)


def _print_zero_shot(console: "Console", rows: Sequence[dict[str, Any]]) -> None:
    """Print the defects that were generated on products without examples of them."""
    from rich.table import Table

    if not rows:
        return
    table = Table(title="defects transferred to products without examples of them", title_justify="left")
    for label in ("product", "defect", "from", "arm", "pairs", "Fréchet* to real ones"):
        table.add_column(label, no_wrap=True)
    for row in rows:
        distance = format_number(row["scores"].get("frechet_lite0")) or "no real ones"
        table.add_row(*(row[key] for key in ("product", "defect", "from", "arm")), str(row["generated"]), distance)
    console.print(table)


def print_times(seconds: Mapping[str, float]) -> None:
    """Print the time of each stage instance that ran, and their sum."""
    if not seconds:
        print("Nothing was stale.")
        return
    print("\nTime of each stage:")
    for address, value in seconds.items():
        print(f"  {address:50} {value:7.1f} s")
    print(f"  {'total':50} {sum(seconds.values()):7.1f} s\n")
