"""What the UI shows of a finished instance: pictures, tables and numbers read from its outputs.

No torch: an asset's process stays small, the work itself runs in a child. Numbers become plots over partitions.
"""

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

from defect_core.graph.instances import Instance
from defect_core.graph.local import read_cost
from defect_core.project.paths import Project

Metadata = dict[str, dg.MetadataValue]

SHEET_COLUMNS = 8
SHEET_IMAGES = 24
PICTURE_BYTES = 72_000  # base64 adds a third, and the event log keeps every picture


def describe(project: Project, instance: Instance) -> Metadata:
    """Metadata of an instance that is up to date; stages without a description of their own have none."""
    reader = _READERS.get(instance.stage.name)
    return reader(project, instance) if reader else {}


def cost(project: Project, instance: Instance) -> Metadata:
    """What the last work on an instance cost on this machine; nothing where it was never done here."""
    found = read_cost(project, instance.address)
    if found is None:
        return {}
    return {
        "work_seconds": dg.MetadataValue.float(float(found["seconds"])),
        "device": dg.MetadataValue.text(found["device"]),
    }


def numeric_leaves(content: Any, prefix: str = "") -> dict[str, float]:
    """All numbers in nested mappings by dotted name; lists, texts, truth values and None are left out."""
    if isinstance(content, Mapping):
        leaves: dict[str, float] = {}
        for name, value in content.items():
            leaves |= numeric_leaves(value, f"{prefix}.{name}" if prefix else str(name))
        return leaves
    if isinstance(content, int | float) and not isinstance(content, bool):
        return {prefix: content}
    return {}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown; numbers get four significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def picture(pixels: Any, alternative: str) -> dg.MetadataValue:
    """uint8 [H, W, 3] as an inline JPEG of bounded size."""
    from PIL import Image

    image = Image.fromarray(pixels)
    for quality, subsampling in ((88, 0), (75, 0), (60, 2), (40, 2), (20, 2)):
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=quality, subsampling=subsampling)
        if stream.tell() <= PICTURE_BYTES:
            break
    text = base64.b64encode(stream.getvalue()).decode()
    return dg.MetadataValue.md(f"![{alternative}](data:image/jpeg;base64,{text})")


def _ingest(project: Project, instance: Instance) -> Metadata:
    from defect_core.data.records import read_records

    folder = project.path(instance.outputs[0])
    records = read_records(folder / "records.parquet")
    counts = Counter(record.defect for record in records)
    shown = _evenly((record.defect, (record.image, record.mask)) for record in records)
    return {
        "images": dg.MetadataValue.int(len(records)),
        "defect_types": dg.MetadataValue.int(len(counts) - ("good" in counts)),
        "counts": dg.MetadataValue.md(markdown_table(("kind", "images"), sorted(counts.items()))),
        "contact_sheet": _sheet(folder, shown, f"real images of {instance.key}"),
    }


def _split(project: Project, instance: Instance) -> Metadata:
    from defect_core.data.records import read_records

    sides: dict[str, Counter] = defaultdict(Counter)
    for record in read_records(project.path(instance.outputs[0])):
        sides[record.defect][record.split] += 1
    rows = [(defect, count["train"], count["test"]) for defect, count in sorted(sides.items())]
    return {
        "train": dg.MetadataValue.int(sum(row[1] for row in rows)),
        "test": dg.MetadataValue.int(sum(row[2] for row in rows)),
        "counts": dg.MetadataValue.md(markdown_table(("kind", "train", "test"), rows)),
    }


def _finetune(project: Project, instance: Instance) -> Metadata:
    path = project.path(instance.outputs[0]) / "training.json"
    losses = [float(value) for value in json.loads(path.read_text()).get("loss", [])] if path.is_file() else []
    if not losses:
        return {"training": dg.MetadataValue.text("this method has no loss: it only keeps the examples")}
    return {
        "steps": dg.MetadataValue.int(len(losses)),
        "final_loss": dg.MetadataValue.float(losses[-1]),
        "loss": picture(draw_curve(losses), "loss over steps"),
    }


def _synthesize(project: Project, instance: Instance) -> Metadata:
    from defect_core.data.manifest import read_manifest

    folder = project.path(instance.outputs[0])
    rows = read_manifest(folder / "manifest.parquet")
    drawn, accepted = Counter(row.defect for row in rows), Counter(row.defect for row in rows if row.accepted)
    reasons = Counter(row.reject_reason for row in rows if not row.accepted)
    shown = _evenly((row.defect, (row.image, row.mask)) for row in rows if row.accepted)
    table = markdown_table(("defect", "accepted", "drawn"), [(d, accepted[d], drawn[d]) for d in sorted(drawn)])
    metadata = {
        "drawn": dg.MetadataValue.int(len(rows)),
        "accepted": dg.MetadataValue.int(accepted.total()),
        "acceptance_rate": dg.MetadataValue.float(accepted.total() / max(1, len(rows))),
        "counts": dg.MetadataValue.md(table),
        "contact_sheet": _sheet(folder, shown, f"synthetic images of {instance.key}"),
    }
    for name in ("quality", "change_outside", "on_product", "nearest_distance"):
        values = [value for row in rows if row.accepted and (value := getattr(row, name)) is not None]
        if values:
            metadata[f"median_{name}"] = dg.MetadataValue.float(float(median(values)))
    if reasons:
        metadata["rejected"] = dg.MetadataValue.md(markdown_table(("reason", "draws"), reasons.most_common(10)))
    return metadata


def _metrics(project: Project, instance: Instance) -> Metadata:
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    # the means over seeds and the pooled scores are worth a plot each; the table holds everything
    scores = content.get("scores")
    headline = content.get("mean") or (scores.get("pooled") if isinstance(scores, Mapping) else None) or content
    metadata: Metadata = {
        name: dg.MetadataValue.float(float(value)) for name, value in list(numeric_leaves(headline).items())[:40]
    }
    table = markdown_table(("score", "value"), sorted(numeric_leaves(content).items()))
    return {"table": dg.MetadataValue.md(table), **metadata}


def _segment(project: Project, instance: Instance) -> Metadata:
    """The scores, how the first seed's training went, and what its score maps look like."""
    metadata = _metrics(project, instance)
    folder = project.path(instance.outputs[0])
    path = folder / "curves.json"
    points = json.loads(path.read_text(encoding="utf-8"))[0]["points"] if path.is_file() else []
    losses = [float(point["loss"]) for point in points if point.get("loss") is not None]
    if losses:
        metadata["loss"] = picture(draw_curve(losses, int(points[-1]["step"])), "training loss, first seed")
    path = folder / "maps.json"
    maps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if maps and "product" in instance.fields:
        metadata["score_maps"] = _map_sheet(project, instance, folder, sorted(maps.items())[:SHEET_COLUMNS])
    return metadata


def _map_sheet(project: Project, instance: Instance, folder: Path, shown: list[tuple[str, str]]) -> dg.MetadataValue:
    """Test images with their true masks' outlines, and below them the score maps."""
    from defect_core.data.records import load_image, load_mask, read_records
    from defect_core.report.page import heat
    from defect_core.report.sheets import contact_sheet

    product = instance.fields["product"]
    raw = project.path(f"data/raw/{product}")
    masks = {record.image: record.mask for record in read_records(project.path(f"data/split/{product}.parquet"))}
    known = [(file, name) for file, name in shown if masks.get(name)]
    images = [load_image(raw / name) for _, name in known] + [heat(folder / file) for file, _ in known]
    outlines = [load_mask(raw / str(masks[name])) for _, name in known] + [None] * len(known)
    return picture(contact_sheet(images, outlines, columns=len(known)), "test images and score maps")


def _adapt(project: Project, instance: Instance) -> Metadata:
    points = json.loads((project.path(instance.outputs[0]) / "adaptation.json").read_text(encoding="utf-8"))
    best = min(points, key=lambda point: point["held_out"])
    metadata: Metadata = {
        "best_step": dg.MetadataValue.int(best["step"]),
        "held_out_loss": dg.MetadataValue.float(float(best["held_out"])),
        "held_out_loss_before": dg.MetadataValue.float(float(points[0]["held_out"])),
    }
    for name in ("loss", "held_out"):
        values = [float(point[name]) for point in points if point[name] is not None]
        if values:
            metadata[f"{name}_curve"] = picture(draw_curve(values, points[-1]["step"]), f"{name} over steps")
    return metadata


def _release(project: Project, instance: Instance) -> Metadata:
    content = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))
    return {
        "decision": dg.MetadataValue.text(content["decision"]),
        "reason": dg.MetadataValue.text(content["reason"]),
        "released_arm": dg.MetadataValue.text(content["released"] or "nothing yet"),
        **{name: dg.MetadataValue.float(float(value)) for name, value in numeric_leaves(content["mean"]).items()},
    }


def _leaderboard(project: Project, instance: Instance) -> Metadata:
    from defect_core.report.table import SEGMENT_COLUMNS, percent

    rows = json.loads(project.path(instance.metrics[0]).read_text(encoding="utf-8"))["rows"]
    body = [
        (
            row["product"],
            row["arm"],
            "" if row["gain"] is None else f"{100 * row['gain']:+.1f}",
            *(percent(row, name) for name in SEGMENT_COLUMNS),
        )
        for row in rows
    ]
    table = markdown_table(("product", "arm", "gain in pixel AP", *SEGMENT_COLUMNS.values()), body)
    best = {row["product"]: row["arm"] for row in reversed(rows)}
    metadata: Metadata = {"leaderboard": dg.MetadataValue.md(f"Segmenter on real test images, %\n\n{table}")}
    return metadata | {f"best_arm_{name}": dg.MetadataValue.text(arm) for name, arm in sorted(best.items())}


_READERS: dict[str, Callable[[Project, Instance], Metadata]] = {
    "ingest": _ingest,
    "split": _split,
    "adapt": _adapt,
    "finetune": _finetune,
    "finetune_catalogue": _finetune,
    "synthesize": _synthesize,
    "normals": _metrics,
    "score": _metrics,
    "segment": _segment,
    "segment_unified": _segment,
    "classify": _segment,
    "detect": _metrics,
    "release": _release,
    "leaderboard": _leaderboard,
}


def draw_curve(values: Sequence[float], last_step: int | None = None, width: int = 480, height: int = 200) -> Any:
    """A line over the index of the values as uint8 [height, width, 3], with the range of both axes written.

    `last_step`: the training step of the last value, where that is not their number.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    left, right, top, bottom = 60, 12, 12, 24
    low, high = min(values), max(values)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(left, top), (left, height - bottom), (width - right, height - bottom)], fill=(150, 150, 150))
    x_scale = (width - left - right) / max(1, len(values) - 1)
    y_scale = (height - top - bottom) / ((high - low) or 1.0)
    points = [(left + i * x_scale, height - bottom - (v - low) * y_scale) for i, v in enumerate(values)]
    draw.line(points if len(points) > 1 else points * 2, fill=(192, 57, 43), width=2)
    for text, y in ((f"{high:.4g}", top), (f"{low:.4g}", height - bottom - 11)):
        draw.text((4, y), text, fill=(60, 60, 60))
    draw.text((width - right - 70, height - 18), f"step {last_step or len(values)}", fill=(60, 60, 60))
    return np.asarray(image)


def _evenly(items: Iterable[tuple[str, Any]]) -> list[Any]:
    """At most `SHEET_IMAGES` items: the first of each kind, then the second of each, kinds kept together."""
    kinds: dict[str, list[Any]] = defaultdict(list)
    for kind, item in items:
        kinds[kind].append(item)
    taken = Counter()
    while taken.total() < SHEET_IMAGES and any(taken[kind] < len(kinds[kind]) for kind in kinds):
        for kind in sorted(kinds):
            if taken[kind] < len(kinds[kind]) and taken.total() < SHEET_IMAGES:
                taken[kind] += 1
    return [item for kind in sorted(kinds) for item in kinds[kind][: taken[kind]]]


def _sheet(folder: Path, shown: list[tuple[str, str | None]], alternative: str) -> dg.MetadataValue:
    from defect_core.data.records import load_image, load_mask
    from defect_core.report.sheets import contact_sheet

    images = [load_image(folder / image) for image, _ in shown]
    masks = [None if mask is None else load_mask(folder / mask) for _, mask in shown]
    return picture(contact_sheet(images, masks, columns=SHEET_COLUMNS), alternative)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
