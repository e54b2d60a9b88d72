"""What the UI shows of a finished instance: pictures, tables and numbers, read from its outputs.

Nothing here imports torch, so the process of an asset stays small. Dagster plots numbers over the partitions.
"""

import json
from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

import dagster as dg

from defect_core.data.manifest import manifest_rows
from defect_core.data.records import GOOD, load_image, load_mask, read_records, record_rows
from defect_core.graph.instances import Instance
from defect_core.graph.local import read_cost
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet, read_score_map
from defect_core.report.table import SEGMENT_COLUMNS, format_score
from pipelines.pictures import SHEET_COLUMNS, select_evenly, show_curve, show_picture, show_sheet, show_table

Metadata = dict[str, dg.MetadataValue]

MAX_PLOTTED_NUMBERS = 40
"""Dagster plots each number over the partitions; the table holds the others."""
MAX_REASONS = 10
_MEASUREMENTS = ("quality", "change_outside", "on_product", "nearest_distance")


def read_cost_metadata(project: Project, instance: Instance) -> Metadata:
    """Return the seconds and the device of the last run on this machine; empty if it never ran here."""
    cost = read_cost(project, instance.address)
    if cost is None:
        return {}
    return {
        "work_seconds": dg.MetadataValue.float(float(cost["seconds"])),
        "device": dg.MetadataValue.text(cost["device"]),
    }


def read_ingest(project: Project, instance: Instance) -> Metadata:
    """Return the counts and a contact sheet of the real images."""
    folder = project.path(instance.outputs[0])
    records = record_rows(folder / "records.parquet")
    counts = Counter(record.defect for record in records)
    files = select_evenly((record.defect, (record.image, record.mask)) for record in records)
    return {
        "images": dg.MetadataValue.int(len(records)),
        "defect_types": dg.MetadataValue.int(len(counts) - (GOOD in counts)),
        "counts": show_table(("defect type", "images"), sorted(counts.items())),
        "contact_sheet": show_sheet(folder, files, f"real images of {instance.key}"),
    }


def read_split(project: Project, instance: Instance) -> Metadata:
    """Return the numbers of training and test images of each defect type."""
    import pandas as pd  # Loading the definitions must not import it.

    records = read_records(project.path(instance.outputs[0]))
    counts = pd.crosstab(records.defect, records.split).reindex(columns=["train", "test"], fill_value=0)
    rows = [(defect, *map(int, numbers)) for defect, *numbers in counts.itertuples()]
    return {
        "train": dg.MetadataValue.int(sum(row[1] for row in rows)),
        "test": dg.MetadataValue.int(sum(row[2] for row in rows)),
        "counts": show_table(("defect type", "train", "test"), rows),
    }


def read_adapt(project: Project, instance: Instance) -> Metadata:
    """Return the best step of the adaptation and its training and held-out losses."""
    points = json.loads((project.path(instance.outputs[0]) / "adaptation.json").read_text(encoding="utf-8"))
    best = min(points, key=lambda point: point["held_out"])
    metadata: Metadata = {
        "best_step": dg.MetadataValue.int(best["step"]),
        "held_out_loss": dg.MetadataValue.float(float(best["held_out"])),
        "initial_held_out_loss": dg.MetadataValue.float(float(points[0]["held_out"])),
    }
    for name in ("loss", "held_out"):
        curve = _curve_points(points, name)
        if curve:
            metadata[f"{name}_curve"] = show_curve(curve, name)
    return metadata


def read_finetune(project: Project, instance: Instance) -> Metadata:
    """Return the training loss of a generator."""
    path = project.path(instance.outputs[0]) / "training.json"
    losses = [float(value) for value in json.loads(path.read_text()).get("loss", [])] if path.is_file() else []
    if not losses:
        return {"training": dg.MetadataValue.text("this method is not trained: it stores the examples only")}
    return {
        "steps": dg.MetadataValue.int(len(losses)),
        "final_loss": dg.MetadataValue.float(losses[-1]),
        "loss": show_curve(list(enumerate(losses, 1)), "loss"),
    }


def read_synthesize(project: Project, instance: Instance) -> Metadata:
    """Return the counts, the medians of the filter's measurements, and a contact sheet of the accepted pairs."""
    folder = project.path(instance.outputs[0])
    rows = manifest_rows(folder / "manifest.parquet")
    accepted_rows = [row for row in rows if row.accepted]
    attempts, accepted = Counter(row.defect for row in rows), Counter(row.defect for row in accepted_rows)
    reasons = Counter(row.reject_reason for row in rows if not row.accepted)
    files = select_evenly((row.defect, (str(row.image), row.mask)) for row in accepted_rows)
    counts = [(defect, accepted[defect], attempts[defect]) for defect in sorted(attempts)]
    metadata: Metadata = {
        "attempts": dg.MetadataValue.int(len(rows)),
        "accepted": dg.MetadataValue.int(len(accepted_rows)),
        "acceptance_rate": dg.MetadataValue.float(len(accepted_rows) / max(1, len(rows))),
        "counts": show_table(("defect type", "accepted", "attempts"), counts),
        "contact_sheet": show_sheet(folder, files, f"synthetic images of {instance.key}"),
    }
    for name in _MEASUREMENTS:
        values = [value for row in accepted_rows if (value := getattr(row, name)) is not None]
        if values:
            metadata[f"median_{name}"] = dg.MetadataValue.float(float(median(values)))
    if reasons:
        metadata["rejected"] = show_table(("reason", "attempts"), reasons.most_common(MAX_REASONS))
    return metadata


def read_metrics(project: Project, instance: Instance) -> Metadata:
    """Return all numbers of a metrics file in a table, and its means or pooled scores one by one."""
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    scores = content.get("scores")
    headline = content.get("mean") or (scores.get("pooled") if isinstance(scores, Mapping) else None) or content
    plotted = list(numeric_leaves(headline).items())[:MAX_PLOTTED_NUMBERS]
    return {
        "table": show_table(("score", "value"), sorted(numeric_leaves(content).items())),
        **{name: dg.MetadataValue.float(float(value)) for name, value in plotted},
    }


def read_segment(project: Project, instance: Instance) -> Metadata:
    """Return the scores of a downstream model, and the loss curve and score maps of the first seed."""
    metadata = read_metrics(project, instance)
    folder = project.path(instance.outputs[0])
    path = folder / "curves.json"
    points = json.loads(path.read_text(encoding="utf-8"))[0]["points"] if path.is_file() else []
    curve = _curve_points(points, "loss")
    if curve:
        metadata["loss"] = show_curve(curve, "training loss, first seed")
    path = folder / "maps.json"
    maps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if maps and "product" in instance.fields:
        metadata["score_maps"] = _show_score_maps(project, instance, sorted(maps.items())[:SHEET_COLUMNS])
    return metadata


def read_release(project: Project, instance: Instance) -> Metadata:
    """Return the decision of the release gate, its reason, and the mean scores."""
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    return {
        "decision": dg.MetadataValue.text(content["decision"]),
        "reason": dg.MetadataValue.text(content["reason"]),
        "released_arm": dg.MetadataValue.text(content["released"] or "none"),
        **{name: dg.MetadataValue.float(float(value)) for name, value in numeric_leaves(content["mean"]).items()},
    }


def read_leaderboard(project: Project, instance: Instance) -> Metadata:
    """Return the leaderboard as a table, and the best arm of each product."""
    rows = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))["rows"]
    body = [
        (
            row["product"],
            row["arm"],
            "" if row["gain"] is None else f"{100 * row['gain']:+.1f}",
            *(format_score(row, name) for name in SEGMENT_COLUMNS),
        )
        for row in rows
    ]
    table = show_table(("product", "arm", "gain in pixel AP", *SEGMENT_COLUMNS.values()), body)
    best = {row["product"]: row["arm"] for row in reversed(rows)}  # The rows of a product are sorted, best first.
    return {
        "leaderboard": dg.MetadataValue.md(f"Segmenter on real test images, %\n\n{table.value}"),
        **{f"best_arm_{product}": dg.MetadataValue.text(arm) for product, arm in sorted(best.items())},
    }


def numeric_leaves(content: object, prefix: str = "") -> dict[str, float]:
    """Return all numbers in nested mappings by dotted name, without lists, texts, booleans and None."""
    if isinstance(content, Mapping):
        leaves: dict[str, float] = {}
        for name, value in content.items():
            leaves |= numeric_leaves(value, f"{prefix}.{name}" if prefix else str(name))
        return leaves
    if isinstance(content, int | float) and not isinstance(content, bool):
        return {prefix: content}
    return {}


def _curve_points(points: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of the points that have the value."""
    return [(float(point["step"]), float(point[name])) for point in points if point.get(name) is not None]


def _show_score_maps(project: Project, instance: Instance, maps: list[tuple[str, str]]) -> dg.MetadataValue:
    """Return test images with the outlines of their real masks, above the score maps; `maps` are (map, image)."""
    product = instance.fields["product"]
    raw, folder = project.path(f"data/raw/{product}"), project.path(instance.outputs[0])
    masks = {record.image: record.mask for record in record_rows(project.path(f"data/split/{product}.parquet"))}
    defective = [(file, name) for file, name in maps if masks.get(name)]
    images = [load_image(raw / name) for _, name in defective]
    images += [read_score_map(folder / file) for file, _ in defective]
    outlines = [load_mask(raw / str(masks[name])) for _, name in defective]
    sheet = contact_sheet(images, [*outlines, *[None] * len(defective)], columns=len(defective))
    return show_picture(sheet, "test images and score maps")
