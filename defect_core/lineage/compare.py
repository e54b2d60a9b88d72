"""What lies between two revisions of a project: which scores moved, whether beyond their spread, and why."""

from typing import Any

from defect_core.lineage.causes import Cause, Lineage
from defect_core.lineage.snapshot import Snapshot, cached_listing, open_snapshot
from defect_core.metrics.spread import beyond_spread, joint_spread
from defect_core.project.paths import Project

HEADLINE = ("pixel_ap", "frechet_lite0")
_SHOWN_FILES = 8


def compare(project: Project, before: str, after: str) -> dict[str, Any]:
    """Compare two revisions, experiments or the working tree (`workspace`); nothing is checked out.

    Returns:
        `before`, `after`: `name` and `commit`; `scores`: one entry per score that differs, with `product`, `arm`,
        `kind` (`segment`, `segment_unified`, `classify` or `score`), `score`, `before`, `after`, `change`, `spread`
        (see `joint_spread`), `beyond` (None where no spread is known) and `why`, numbers of `causes`; `same`: how many
        scores are equal; `causes`: `number`, `kind`, `what`, `before`, `after`, `files`, `reaches` (how many differing
        scores go back to it); `sets`: synthetic sets that differ, with DVC's digest on both sides; `pending`: what
        differs, but nothing on record has run with it.

    Raises:
        InputError: an unknown revision.
    """
    sides = open_snapshot(project, before), open_snapshot(project, after)
    lineage = Lineage(*sides)
    scores, same, order = [], 0, {}
    for path in sorted(sides[0].metrics.keys() | sides[1].metrics.keys()):
        address = lineage.address_of(path)
        entries, equal = _moved(path, *(side.metrics.get(path, {}) for side in sides))
        same += equal
        causes = sorted(lineage.causes(address)) if address and entries else []
        why = [order.setdefault(cause, len(order) + 1) for cause in causes]
        scores += [{**entry, "why": why} for entry in entries]
    return {
        "before": _named(sides[0]),
        "after": _named(sides[1]),
        "scores": scores,
        "same": same,
        "causes": [
            {
                "number": number,
                **_described(project, sides, lineage, cause),
                "reaches": sum(number in entry["why"] for entry in scores),
            }
            for cause, number in order.items()
        ],
        "sets": _sets(sides),
        "pending": [_described(project, sides, lineage, cause) for cause in lineage.pending()],
    }


def print_comparison(found: dict[str, Any], everything: bool = False) -> None:
    """Print the scores beyond their spread and each headline that moved; with `everything` all that differ."""
    from rich.markup import escape
    from rich.table import Table

    from defect_core.report.table import number, table_console

    console = table_console()
    names = [_title(found[side]) for side in ("before", "after")]
    shown = [entry for entry in found["scores"] if everything or entry["beyond"] or entry["score"] in HEADLINE]
    if shown:
        table = Table(title=f"{names[0]} → {names[1]}", title_justify="left")
        for label in ("product", "arm", "score"):
            table.add_column(label, no_wrap=True)
        for label in ("before", "after", "change", "spread"):
            table.add_column(label, justify="right", no_wrap=True)
        table.add_column("beyond", no_wrap=True)
        table.add_column("why", no_wrap=True)
        for entry in shown:
            change = "" if entry["change"] is None else f"{entry['change']:+.4g}"
            cells = [number(entry[side]) or "–" for side in ("before", "after")]
            beyond = {None: "?", True: "yes", False: "no"}[entry["beyond"]]
            why = ", ".join(str(cause) for cause in entry["why"])
            texts = [entry["product"], entry["arm"], entry["score"], *cells, change, number(entry["spread"]) or "–"]
            table.add_row(*(escape(text) for text in texts), beyond, why or "unknown")
        console.print(table)
    beyond = sum(entry["beyond"] is True for entry in found["scores"])
    console.print(
        f"{len(found['scores'])} scores differ, {beyond} beyond their spread; {found['same']} are the same."
        + ("" if len(shown) == len(found["scores"]) else " --all or --json shows the rest.")
    )
    for title, causes in (("Why:", found["causes"]), ("Changed, but nothing has run with it yet:", found["pending"])):
        if causes:
            console.print(title)
        for cause in causes:
            console.print("  " + escape(cause_line(cause)), soft_wrap=True)


def cause_line(cause: dict[str, Any]) -> str:
    """A cause in one line, its number first if it has one."""
    text = f"{cause['number']}. " if "number" in cause else "- "
    text += f"{cause['kind']}: {cause['what']}"
    if cause["kind"] in ("settings", "stage"):
        text += f": {cause['before']} → {cause['after']}"
    if cause["files"]:
        more = len(cause["files"]) - _SHOWN_FILES
        text += " (" + ", ".join(cause["files"][:_SHOWN_FILES]) + (f" and {more} more" if more > 0 else "") + ")"
    return text


def _moved(path: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The scores of one file that differ, and how many do not."""
    _, kind, *products, name = path.removesuffix(".json").split("/")
    product = products[0] if products else "all products"
    values = [_scores(content, kind) for content in (before, after)]
    spreads = [content.get("std") or {} for content in (before, after)]
    entries, same = [], 0
    for score in sorted(values[0].keys() | values[1].keys(), key=lambda name: (name not in HEADLINE, name)):
        one, other = (side.get(score) for side in values)
        if one == other:
            same += 1
            continue
        change = None if None in (one, other) else round(other - one, 9)
        spread = joint_spread(*(side.get(score) for side in spreads))
        entries.append(
            {
                "kind": kind,
                "product": product,
                "arm": name,
                "score": score,
                "before": one,
                "after": other,
                "change": change,
                "spread": None if spread is None else round(spread, 9),
                "beyond": None if change is None else beyond_spread(change, spread),
            }
        )
    return entries, same


def _scores(content: dict[str, Any], kind: str) -> dict[str, float]:
    found = content.get("scores", {}).get("pooled") if kind == "score" else content.get("mean")
    numbers = {k: v for k, v in (found or {}).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rate = (content.get("acceptance") or {}).get("acceptance_rate")
    return numbers if rate is None else numbers | {"acceptance_rate": rate}


def _described(project: Project, sides: tuple[Snapshot, Snapshot], lineage: Lineage, cause: Cause) -> dict[str, Any]:
    files = lineage.changed_files(cause.what) if cause.kind == "code" else []
    if cause.kind == "raw images":
        files = _raw_changes(project, sides, cause.what)
    if files == [cause.what]:
        files = []
    return {"kind": cause.kind, "what": cause.what, "before": cause.before, "after": cause.after, "files": files}


def _sets(sides: tuple[Snapshot, Snapshot]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, str]] = {}
    for name, side in zip(("before", "after"), sides, strict=True):
        for address, entry in side.lock.items():
            if address.startswith("synthesize@"):
                for output in entry.get("outs", []):
                    found.setdefault(output["path"], {})[name] = output["md5"]
    return [
        {"path": path, "before": digests.get("before"), "after": digests.get("after")}
        for path, digests in sorted(found.items())
        if digests.get("before") != digests.get("after")
    ]


def _raw_changes(project: Project, sides: tuple[Snapshot, Snapshot], folder: str) -> list[str]:
    """Which raw images differ, where DVC's cache holds the lists of both sides."""
    listings = []
    for side in sides:
        outputs = side.lock.get(f"ingest@{folder.rpartition('/')[2]}", {}).get("outs", [])
        listings.append(cached_listing(project, next((out["md5"] for out in outputs if out["path"] == folder), None)))
    if None in listings:
        return []
    before, after = listings
    changes = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and not path.endswith((".parquet", ".json")):
            sign = "+" if path not in before else "-" if path not in after else "changed "
            changes.append(f"{sign}{path}")
    return changes


def _named(side: Snapshot) -> dict[str, Any]:
    return {"name": side.name, "commit": side.commit}


def _title(side: dict[str, Any]) -> str:
    return side["name"] if side["commit"] in (None, side["name"]) else f"{side['name']} ({side['commit'][:9]})"
