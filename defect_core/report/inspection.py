"""The inspector's figures as text: escapes, overkill and found regions of each arm (see docs/inspection.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_TARGET = "0.01"
"""Overkill target of the leaderboard's column and of the tables with one target."""
EXTRAPOLATED = "†"
UNDEFINED = "undefined"
_SIZES = ("small", "medium", "large")
_CONTRASTS = ("low", "medium", "high")


def target_name(key: str) -> str:
    """Return an overkill target in percent, such as `1 %` for `0.01`."""
    return f"{100 * float(key):g} %"


def find_target(row: Mapping[str, Any], key: str = SHOWN_TARGET) -> dict[str, Any] | None:
    """Return the figures of a leaderboard row at an overkill target, None if it has none."""
    target = ((row.get("inspection") or {}).get("targets") or {}).get(key)
    return target if target and "escape" in target else None


def format_rate(rate: Mapping[str, Any] | None) -> str:
    """Return a rate in percent as `12.0`, or `none` without an image or region."""
    return "none" if rate is None or rate["rate"] is None else f"{100 * rate['rate']:.1f}"


def format_ends(rate: Mapping[str, Any] | None) -> str:
    """Return the interval of a rate in percent as `7.1–20.3`; "" without one."""
    ends: list[float] | None = None if rate is None else rate["interval"]
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}" if ends else ""


def format_escapes(row: Mapping[str, Any]) -> str:
    """Return the escape rate at `SHOWN_TARGET` in percent, marked if extrapolated, or `undefined: ` and why."""
    inspection = row.get("inspection") or {}
    figures = find_target(row)
    if figures is None:
        reason = inspection.get("reason") or ((inspection.get("targets") or {}).get(SHOWN_TARGET) or {}).get("note")
        return f"{UNDEFINED}: {reason}" if reason else UNDEFINED
    return format_rate(figures["escape"]) + (EXTRAPOLATED if figures["support"] == "extrapolated" else "")


def extrapolation_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each distinct note of an extrapolated threshold at `SHOWN_TARGET`."""
    targets = [target for row in rows if (target := find_target(row)) and target["support"] == "extrapolated"]
    return [f"{EXTRAPOLATED} {note}" for note in dict.fromkeys(target["note"] for target in targets)]


def inspection_columns(inspection: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the columns of a leaderboard frame: figures by name and overkill target in percent."""
    columns: dict[str, Any] = {}
    for key, target in ((inspection or {}).get("targets") or {}).items():
        suffix = f"at_{100 * float(key):g}"
        columns[f"support_{suffix}"] = target["support"]
        for name in ("escape", "overkill", "region_recall"):
            rate = target.get(name) or {"rate": None, "interval": None}
            low, high = rate["interval"] or (None, None)
            columns |= {f"{name}_{suffix}": rate["rate"], f"{name}_{suffix}_low": low, f"{name}_{suffix}_high": high}
        columns[f"false_regions_{suffix}"] = target.get("false_regions_per_image")
    return columns


def inspection_section(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the tables of one product for the report; None for a leaderboard without such figures.

    Returns:
        `reasons` of arms without figures, `protocol`, `notes` on thresholds, and `tables`, each with `title`, `labels`
        and `rows` of an arm's name and its cells, which are pairs of a value and its interval.
    """
    if not any(row.get("inspection") for row in rows):
        return None
    measured = [row for row in rows if (row.get("inspection") or {}).get("targets")]
    reasons = [f"{row['arm']}: {row['inspection']['reason']}" for row in rows if "reason" in (row["inspection"] or {})]
    section: dict[str, Any] = {"reasons": reasons, "protocol": None, "tables": [], "notes": []}
    if not measured:
        return section
    first = measured[0]["inspection"]
    section["protocol"] = first["protocol"]
    section["notes"] = [
        f"{target_name(key)}: {target['support']}. {target['note']}"
        for key, target in first["targets"].items()
        if target["note"]
    ]
    section["tables"] = [_target_table(measured, list(first["targets"]))]
    shown = [row for row in measured if find_target(row)]
    if shown:
        tables = [_defect_table(shown), _region_table(shown), _tercile_table(shown)]
        section["tables"] += [table for table in tables if table["labels"]]
    return section


_SHOWN = f"{target_name(SHOWN_TARGET)} overkill"


def _target_table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Return escapes and realised overkill at each target."""
    extrapolated = {
        key for row in rows for key in keys if (find_target(row, key) or {}).get("support") == "extrapolated"
    }
    names = [target_name(key) + EXTRAPOLATED * (key in extrapolated) for key in keys]
    labels = [f"{what} at {name}" for name in names for what in ("escapes", "overkill")]
    lines = []
    for row in rows:
        cells = []
        for key in keys:
            figures = find_target(row, key)
            for name in ("escape", "overkill"):
                cells.append(_cell(figures[name]) if figures else ("not available", ""))
        lines.append((row["arm"], cells))
    return {"title": "Escapes and overkill, %", "labels": labels, "rows": lines}


def _defect_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the escapes of each defect type at `SHOWN_TARGET`, and its smallest found and largest missed region."""
    targets = [_shown(row) for row in rows]
    defects = list(targets[0]["escape_by_defect"])
    labels = []
    for defect in defects:
        labels += [f"{defect}: escapes of {targets[0]['escape_by_defect'][defect]['count']}", "smallest found, px"]
    lines = []
    for row, target in zip(rows, targets, strict=True):
        cells = []
        for defect in defects:
            cells += [_cell(target["escape_by_defect"][defect]), (_areas(target["smallest_found_px"][defect]), "")]
        lines.append((row["arm"], cells))
    return {"title": f"Defect types at {_SHOWN}, %", "labels": labels, "rows": lines}


def _region_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of the defect regions at `SHOWN_TARGET`."""
    labels = ["region recall", "false regions per image", "smallest found, px", "largest missed, px"]
    lines = []
    for row in rows:
        target = _shown(row)
        cells = [_cell(target["region_recall"]), (f"{target['false_regions_per_image']:.2f}", "")]
        cells += [(_areas(target[name]["all"]), "") for name in ("smallest_found_px", "largest_missed_px")]
        lines.append((row["arm"], cells))
    return {"title": f"Defect regions found at {_SHOWN}, %", "labels": labels, "rows": lines}


def _tercile_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the region recall by size and by contrast at `SHOWN_TARGET`."""
    labels: list[str] = []
    first = _shown(rows[0])
    bins = [("recall_by_size", _SIZES, "px"), ("recall_by_contrast", _CONTRASTS, "grey levels")]
    for name, words, unit in bins:
        edges = first[name].get("edges")
        if edges:
            low, high = (f"{edge:.0f}" if edge >= 10 else f"{edge:.1f}" for edge in edges)
            limits = (f"to {low}", f"to {high}", f"above {high}")
            labels += [f"{word} {limit} {unit}" for word, limit in zip(words, limits, strict=True)]
    lines = [
        (row["arm"], [_cell(rate) for name, _, _ in bins for rate in _shown(row)[name].get("bins", [])]) for row in rows
    ]
    return {"title": f"Region recall by size and contrast at {_SHOWN}, %", "labels": labels, "rows": lines}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return row["inspection"]["targets"][SHOWN_TARGET]


def _cell(rate: Mapping[str, Any]) -> tuple[str, str]:
    return format_rate(rate), format_ends(rate)


def _areas(per_seed: Sequence[int | None]) -> str:
    """Return the areas of all seeds as a range."""
    areas = sorted(area for area in per_seed if area is not None)
    if not areas:
        return "none"
    return str(areas[0]) if areas[0] == areas[-1] else f"{areas[0]}–{areas[-1]}"
