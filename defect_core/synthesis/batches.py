"""From a trained generator to a synthetic set: batches of requests, the filter, the manifest; resumable at any batch.

Rejected samples stay in the manifest with the reason; their images are not kept.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from defect_core.data.files import write_json, write_text
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import pixel_digest, save_png
from defect_core.generators.base import Example, Generator, SampleRequest, SyntheticPair
from defect_core.progress import track
from defect_core.synthesis.filter import NearestDefectIndex, PairMeasurements, measure_pair
from defect_core.synthesis.requests import (
    SynthesisPlan,
    batch_indices,
    defect_types,
    make_request,
    normal_examples,
)

PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.parquet"
SUMMARY_FILE = "summary.json"
# A defect type and the number of a batch of it.
Batch = tuple[str, int]


def synthesize(generator: Generator, plan: SynthesisPlan, examples: Sequence[Example], folder: Path) -> None:
    """Fill `folder` with `images/`, `masks/`, `manifest.parquet`, `summary.json` and `plan.json`.

    Args:
        generator: trained on the product.
        plan: what the set consists of.
        examples: training images of the product, and examples of other products for zero-shot defects.
        folder: finished batches of an earlier, interrupted call are kept.

    Raises:
        InputError: the product has no normal images.
    """
    defects = defect_types(plan, examples)
    while batches := next_batches(plan, defects, folder):
        sample_batches(generator, plan, examples, folder, batches)
    collect_batches(plan, defects, folder)


def next_batches(plan: SynthesisPlan, defects: Sequence[str], folder: Path) -> list[Batch]:
    """Return the batches that `folder` lacks and that are certainly needed; none once all defect types are complete.

    A missing batch counts as if all its samples were accepted. So the batches are the same whichever process samples
    them, in any order, and no batch is sampled in vain.
    """
    needed = []
    for defect in defects:
        accepted = 0
        for number in _batch_numbers(plan, defect):
            if accepted >= plan.target_count(defect):
                break
            rows = _read_batch(folder, (defect, number))
            if rows is None:
                needed.append((defect, number))
            accepted += plan.batch_size if rows is None else sum(row.accepted for row in rows)
    return needed


def sample_batches(
    generator: Generator, plan: SynthesisPlan, examples: Sequence[Example], folder: Path, batches: Sequence[Batch]
) -> None:
    """Sample batches into `folder`: accepted pairs as files, then a table per batch.

    Args:
        generator: trained on the product.
        plan: what the set consists of.
        examples: as for `synthesize`.
        folder: where files are written; it is created if missing.
        batches: which batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normals = normal_examples(plan, examples)
    indices: dict[str, NearestDefectIndex] = {}
    for defect, number in track(batches, f"{plan.generator} samples {plan.product}"):
        sources = [example for example in examples if example.defect == defect]
        if defect not in indices:
            indices[defect] = NearestDefectIndex.from_examples(sources)
        numbers = batch_indices(plan, defect, number * plan.batch_size)
        made = [make_request(plan, defect, index, normals, sources) for index in numbers]
        pairs = generator.sample([request for request, _ in made])
        rows = []
        for (request, normal_name), pair in zip(made, pairs, strict=True):
            if request.normal_image is None:
                raise ValueError(f"request {request.sample_id}: expected a normal image")
            measured = measure_pair(pair, request.normal_image, plan, indices[defect], request.allowed)
            rows.append(_keep_pair(plan, request, normal_name, pair, measured, folder))
        write_text(folder / _batch_file((defect, number)), json.dumps([asdict(row) for row in rows]))


def collect_batches(plan: SynthesisPlan, defects: Sequence[str], folder: Path) -> None:
    """Write manifest, summary and plan from the batches in `folder`, and remove accepted pairs beyond the target."""
    rows: list[ManifestRow] = []
    for defect in defects:
        sampled: list[ManifestRow] = []
        for number in _batch_numbers(plan, defect):
            sampled += _read_batch(folder, (defect, number)) or []
        rows += _remove_surplus(sampled, plan.target_count(defect), folder)
    write_manifest(rows, folder / MANIFEST_FILE)
    write_json(folder / SUMMARY_FILE, summarise_rows(rows))
    write_json(folder / PLAN_FILE, plan.model_dump())
    for batch in folder.glob("batch-*.json"):
        batch.unlink()


def summarise_rows(rows: Sequence[ManifestRow]) -> dict[str, object]:
    """Return counts, the acceptance rate, reasons of rejection, and medians over the accepted pairs."""
    accepted = [row for row in rows if row.accepted]
    reasons = Counter(
        (row.reject_reason or "").split(",")[0].rstrip("0123456789. ") for row in rows if not row.accepted
    )
    distances = [row.nearest_distance for row in accepted if row.nearest_distance is not None]
    qualities = [row.quality for row in accepted if row.quality is not None]
    return {
        "attempts": len(rows),
        "accepted": len(accepted),
        "acceptance_rate": round(len(accepted) / max(1, len(rows)), 4),
        "rejected": dict(reasons),
        "median_quality": round(float(np.median(qualities)), 4) if qualities else None,
        "median_nearest_distance": round(float(np.median(distances)), 4) if distances else None,
    }


def _batch_numbers(plan: SynthesisPlan, defect: str) -> range:
    return range(-(-plan.max_requests(defect) // plan.batch_size))


def _batch_file(batch: Batch) -> str:
    return f"batch-{batch[0]}-{batch[1]:05d}.json"


def _read_batch(folder: Path, batch: Batch) -> list[ManifestRow] | None:
    """Return the rows of a finished batch; None if it is missing."""
    file = folder / _batch_file(batch)
    return [ManifestRow(**row) for row in json.loads(file.read_text())] if file.is_file() else None


def _keep_pair(
    plan: SynthesisPlan,
    request: SampleRequest,
    normal_name: str,
    pair: SyntheticPair,
    measured: PairMeasurements,
    folder: Path,
) -> ManifestRow:
    """Write the files of an accepted pair, and return its manifest row."""
    if request.source is None:
        raise ValueError(f"request {request.sample_id}: expected a real example")
    accepted = not measured.reason
    image, mask = f"images/{pair.sample_id}.png", f"masks/{pair.sample_id}.png"
    if accepted:
        save_png(pair.image, folder / image)
        save_png(pair.mask.astype(np.uint8) * 255, folder / mask)
    return ManifestRow(
        sample_id=pair.sample_id,
        product=request.product,
        defect=request.defect,
        image=image if accepted else None,
        mask=mask if accepted else None,
        generator=plan.generator,
        seed=request.seed,
        source_image=normal_name,
        source_mask=request.source.name,
        source_product=request.source.product,
        prompt=pair.metadata.get("prompt"),
        strength=pair.metadata.get("strength"),
        mask_area=int(pair.mask.sum()),
        quality=measured.quality,
        change_inside=measured.change_inside,
        change_outside=measured.change_outside,
        on_product=measured.on_product,
        nearest_image=measured.nearest,
        nearest_distance=measured.distance,
        accepted=accepted,
        reject_reason=measured.reason or None,
        model_digest=plan.model_digest,
        image_sha256=pixel_digest(pair.image),
    )


def _remove_surplus(rows: Sequence[ManifestRow], target: int, folder: Path) -> list[ManifestRow]:
    """Remove accepted pairs beyond the target, files and rows: the last batch may accept more than needed."""
    kept, accepted = [], 0
    for row in rows:
        if row.accepted and accepted == target:
            for path in (row.image, row.mask):
                if path is not None:
                    (folder / path).unlink(missing_ok=True)
            continue
        accepted += row.accepted
        kept.append(row)
    return kept
