"""Comparison of two revisions of a project: scores that differ, whether beyond their spread, and the causes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defect_core.lineage.causes import Cause, Lineage
from defect_core.lineage.lock import output_digest
from defect_core.lineage.snapshot import Snapshot, cached_listing, open_snapshot
from defect_core.metrics.spread import beyond_spread, joint_spread
from defect_core.project.paths import Project

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

HEADLINE = ("pixel_ap", "frechet_lite0")
_FILES_SHOWN = 8
_SCORE_COLUMNS = ("kind", "product", "arm", "score", "before", "after", "change", "spread", "beyond")


def compare_revisions(project: Project, before: str, after: str) -> dict[str, Any]:
    """Compare two revisions, DVC experiments or the working tree (`workspace`) without a checkout.

    Returns:
        `before` and `after`: `name` and `commit`.
        `scores`: one entry per score that differs: `kind` (`segment`, `segment_unified`, `classify` or `score`),
        `product`, `arm`, `score`, `before`, `after`, `change`, `spread` (see `joint_spread`), `beyond` (whether the
        change exceeds the spread, None without a spread) and `why` (numbers of `causes`).
        `same`: number of equal scores.
        `causes`: `number`, `kind`, `what`, `before`, `after`, `files`, `reaches` (number of scores it changed).
        `sets`: synthetic sets that differ, with DVC's digests.
        `pending`: differences with which no recorded stage instance has run.

    Raises:
        InputError: a revision does not exist.
    """
    sides = open_snapshot(project, before), open_snapshot(project, after)
    lineage = Lineage(*sides)
    scores, same = [], 0
    numbers: dict[Cause, int] = {}
    for path in sorted(sides[0].metrics.keys() | sides[1].metrics.keys()):
        address = lineage.address_of(path)
        entries, equal = _changed_scores(path, *(side.metrics.get(path, {}) for side in sides))
        same += equal
        causes = sorted(lineage.causes(address)) if address and entries else []
        why = [numbers.setdefault(cause, len(numbers) + 1) for cause in causes]
        scores += [{**entry, "why": why} for entry in entries]
    return {
        "before": {"name": sides[0].name, "commit": sides[0].commit},
        "after": {"name": sides[1].name, "commit": sides[1].commit},
        "scores": scores,
        "same": same,
        "causes": [
            {
                "number": number,
                **_describe_cause(project, sides, lineage, cause),
                "reaches": sum(number in entry["why"] for entry in scores),
            }
            for cause, number in numbers.items()
        ],
        "sets": _changed_sets(sides),
        "pending": [_describe_cause(project, sides, lineage, cause) for cause in lineage.pending()],
    }


def comparison_frame(comparison: Mapping[str, Any]) -> "pd.DataFrame":
    """Return the scores that differ as a frame.

    Args:
        comparison: see `compare_revisions`.

    Returns:
        One row per score: `kind`, `product`, `arm`, `score`, `before`, `after`, `change`, `spread` (NaN where
        undefined), `beyond` (nullable boolean) and `causes` (texts as `settings: synthesize.per_defect`, joined by
        "; ").
    """
    import pandas as pd

    texts = {cause["number"]: f"{cause['kind']}: {cause['what']}" for cause in comparison["causes"]}
    frame = pd.DataFrame(comparison["scores"], columns=list(_SCORE_COLUMNS))
    frame["causes"] = ["; ".join(texts[number] for number in entry["why"]) for entry in comparison["scores"]]
    numbers = dict.fromkeys(("before", "after", "change", "spread"), "float64")
    return frame.astype({**numbers, "beyond": "boolean"})


def print_comparison(comparison: Mapping[str, Any], everything: bool = False) -> None:
    """Print the scores that changed beyond their spread, and the headline scores that differ.

    Args:
        comparison: see `compare_revisions`.
        everything: whether to print all scores that differ.
    """
    from rich.markup import escape

    from defect_core.report.table import make_console

    console = make_console()
    scores = comparison["scores"]
    shown = [entry for entry in scores if everything or entry["beyond"] or entry["score"] in HEADLINE]
    if shown:
        title = " → ".join(_title(comparison[side]) for side in ("before", "after"))
        console.print(_score_table(title, shown))
    beyond = sum(entry["beyond"] is True for entry in scores)
    console.print(
        f"{len(scores)} scores differ, {beyond} of them beyond their spread; {comparison['same']} are equal."
        + ("" if len(shown) == len(scores) else " Use --all or --json to show every difference.")
    )
    lists = {"Causes:": comparison["causes"], "Changed, but no stage has run with it yet:": comparison["pending"]}
    for title, causes in lists.items():
        if causes:
            console.print(title)
        for cause in causes:
            console.print("  " + escape(format_cause(cause)), soft_wrap=True)


def format_cause(cause: Mapping[str, Any]) -> str:
    """Return a cause as one line, with its number if it has one."""
    text = f"{cause['number']}. " if "number" in cause else "- "
    text += f"{cause['kind']}: {cause['what']}"
    if cause["kind"] in ("settings", "stage"):
        text += f": {cause['before']} → {cause['after']}"
    if cause["files"]:
        more = len(cause["files"]) - _FILES_SHOWN
        text += " (" + ", ".join(cause["files"][:_FILES_SHOWN]) + (f" and {more} more" if more > 0 else "") + ")"
    return text


def _score_table(title: str, entries: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from defect_core.report.table import format_number

    table = Table(title=title, title_justify="left")
    for label in ("product", "arm", "score"):
        table.add_column(label, no_wrap=True)
    for label in ("before", "after", "change", "spread"):
        table.add_column(label, justify="right", no_wrap=True)
    for label in ("beyond", "causes"):
        table.add_column(label, no_wrap=True)
    for entry in entries:
        change = "" if entry["change"] is None else f"{entry['change']:+.4g}"
        cells = [format_number(entry[side]) or "–" for side in ("before", "after")]
        beyond = {None: "?", True: "yes", False: "no"}[entry["beyond"]]
        causes = ", ".join(str(number) for number in entry["why"])
        texts = [entry["product"], entry["arm"], entry["score"], *cells, change, format_number(entry["spread"]) or "–"]
        table.add_row(*(escape(text) for text in texts), beyond, causes or "unknown")
    return table


def _changed_scores(path: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the scores of one metrics file that differ, and the number of equal ones."""
    _, kind, *products, name = path.removesuffix(".json").split("/")
    product = products[0] if products else "all products"
    values = [_scores(content, kind) for content in (before, after)]
    spreads = [content.get("std") or {} for content in (before, after)]
    entries, same = [], 0
    for score in sorted(values[0].keys() | values[1].keys(), key=lambda name: (name not in HEADLINE, name)):
        old, new = (side.get(score) for side in values)
        if old == new:
            same += 1
            continue
        change = None if old is None or new is None else round(new - old, 9)
        spread = joint_spread(*(side.get(score) for side in spreads))
        entries.append(
            {
                "kind": kind,
                "product": product,
                "arm": name,
                "score": score,
                "before": old,
                "after": new,
                "change": change,
                "spread": None if spread is None else round(spread, 9),
                "beyond": None if change is None else beyond_spread(change, spread),
            }
        )
    return entries, same


def _scores(content: dict[str, Any], kind: str) -> dict[str, int | float]:
    scores = content.get("scores", {}).get("pooled") if kind == "score" else content.get("mean")
    numbers = {k: v for k, v in (scores or {}).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rate = (content.get("acceptance") or {}).get("acceptance_rate")
    return numbers if rate is None else numbers | {"acceptance_rate": rate}


def _describe_cause(
    project: Project, sides: tuple[Snapshot, Snapshot], lineage: Lineage, cause: Cause
) -> dict[str, Any]:
    files = lineage.changed_files(cause.what) if cause.kind == "code" else []
    if cause.kind == "raw images":
        files = _raw_changes(project, sides, cause.what)
    if files == [cause.what]:
        files = []
    return {"kind": cause.kind, "what": cause.what, "before": cause.before, "after": cause.after, "files": files}


def _changed_sets(sides: tuple[Snapshot, Snapshot]) -> list[dict[str, Any]]:
    sets: dict[str, dict[str, str]] = {}
    for name, side in zip(("before", "after"), sides, strict=True):
        for address, entry in side.lock.items():
            if address.startswith("synthesize@"):
                for output in entry.get("outs", []):
                    sets.setdefault(output["path"], {})[name] = output["md5"]
    return [
        {"path": path, "before": digests.get("before"), "after": digests.get("after")}
        for path, digests in sorted(sets.items())
        if digests.get("before") != digests.get("after")
    ]


def _raw_changes(project: Project, sides: tuple[Snapshot, Snapshot], folder: str) -> list[str]:
    """Return the raw images that differ; none where DVC's cache lacks the list of one side."""
    address = f"ingest@{folder.rpartition('/')[2]}"
    before, after = (cached_listing(project, output_digest(side.lock, address, folder)) for side in sides)
    if before is None or after is None:
        return []
    changes = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and not path.endswith((".parquet", ".json")):
            sign = "+" if path not in before else "-" if path not in after else "changed "
            changes.append(f"{sign}{path}")
    return changes


def _title(side: dict[str, Any]) -> str:
    return side["name"] if side["commit"] in (None, side["name"]) else f"{side['name']} ({side['commit'][:9]})"
