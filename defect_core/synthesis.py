"""From a fitted generator to a synthetic set: requests, pairs, the filter, the manifest; resumable at any batch.

A sample is decided by (base seed, product, generator, defect, index) alone, so a run that was killed, or cut in
shards, makes the same files. Rejected draws stay in the manifest with their reason; their images are not kept.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.placement import place
from defect_core.data.records import pixel_digest, save_png
from defect_core.errors import InputError
from defect_core.generators.base import Example, Generator, SampleRequest, SyntheticPair, derive_seed
from defect_core.progress import track


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Attributes:
        per_defect: accepted pairs wanted per defect type.
        batch_size: requests answered at once.
        max_draws: bound on requests per wanted pair.
        min_change: least mean absolute change inside the mask, in grey levels of 255.
        min_area: least mask area in pixels.
        model_digest: of the generator's folder, for the manifest.
    """

    product: str
    generator: str
    base_seed: int
    per_defect: int
    batch_size: int
    max_draws: float
    min_change: float
    min_area: int
    model_digest: str


def synthesize(generator: Generator, recipe: Recipe, examples: Sequence[Example], folder: Path) -> None:
    """Fill `folder` with `images/`, `masks/`, `manifest.parquet` and `summary.json`.

    Args:
        generator: fitted on the product.
        recipe: what to make.
        examples: the training side of the split, good and defective.
        folder: holds what an earlier, killed call left; its finished batches are kept.

    Raises:
        InputError: no good images to draw on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normals = [example for example in examples if example.mask is None]
    if not normals:
        raise InputError(f"product {recipe.product}: has no good training images to draw defects on")
    defects = sorted({example.defect for example in examples if example.mask is not None})
    rows: list[ManifestRow] = []
    for defect in defects:
        sources = [example for example in examples if example.defect == defect]
        rows += _make_defect(generator, recipe, defect, normals, sources, folder)
    write_manifest(rows, folder / "manifest.parquet")
    _write_summary(rows, folder / "summary.json")
    for batch in folder.glob("batch-*.json"):
        batch.unlink()


def make_request(
    recipe: Recipe, defect: str, index: int, normals: Sequence[Example], sources: Sequence[Example]
) -> tuple[SampleRequest, str]:
    """The index-th request for a defect, and the name of its normal image.

    A good image and a real example are drawn at random, and the example's mask is placed where the good image
    looks like the example's surroundings.
    """
    seed = derive_seed(recipe.base_seed, recipe.product, recipe.generator, defect, index)
    rng = np.random.default_rng(seed)
    normal = normals[int(rng.integers(len(normals)))]
    source = sources[int(rng.integers(len(sources)))]
    placement = place(source.image, source.mask, normal.image, rng)
    request = SampleRequest(
        sample_id=f"{defect}-{index:05d}",
        product=recipe.product,
        defect=defect,
        seed=seed,
        normal_image=normal.image,
        mask=placement.mask,
        source=source,
        warped=placement.warped,
    )
    return request, normal.name


def inspect_pair(pair: SyntheticPair, normal: np.ndarray, recipe: Recipe) -> tuple[float, str]:
    """Quality of a pair, and why it is rejected ("" when it is not).

    Quality is the mean absolute change inside the mask, in grey levels, minus that outside: a defect that can be
    seen, where the mask says, on an untouched background.
    """
    change = np.abs(pair.image.astype(np.int16) - normal.astype(np.int16)).mean(-1)
    area = int(pair.mask.sum())
    inside = float(change[pair.mask].mean()) if area else 0.0
    outside = float(change[~pair.mask].mean()) if area < pair.mask.size else 0.0
    quality = round(inside - outside, 4)
    if area < recipe.min_area:
        return quality, f"mask of {area} px, below {recipe.min_area}"
    if inside < recipe.min_change:
        return quality, f"change inside the mask {inside:.1f}, below {recipe.min_change:g}"
    return quality, ""


def _make_defect(
    generator: Generator,
    recipe: Recipe,
    defect: str,
    normals: Sequence[Example],
    sources: Sequence[Example],
    folder: Path,
) -> list[ManifestRow]:
    rows: list[ManifestRow] = []
    budget = int(np.ceil(recipe.per_defect * recipe.max_draws))
    batches = -(-budget // recipe.batch_size)
    label = f"{recipe.generator} draws {defect} on {recipe.product}"
    for batch in track(_until_enough(range(batches), rows, recipe.per_defect), label, total=_expected(recipe)):
        kept = folder / f"batch-{defect}-{batch:05d}.json"
        if kept.is_file():
            rows += [ManifestRow(**row) for row in json.loads(kept.read_text())]
            continue
        indices = range(batch * recipe.batch_size, min((batch + 1) * recipe.batch_size, budget))
        made = _make_batch(generator, recipe, defect, indices, normals, sources, folder)
        fresh = kept.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(row) for row in made]))
        fresh.rename(kept)
        rows += made
    return _drop_surplus(rows, recipe.per_defect, folder)


def _make_batch(
    generator: Generator,
    recipe: Recipe,
    defect: str,
    indices: range,
    normals: Sequence[Example],
    sources: Sequence[Example],
    folder: Path,
) -> list[ManifestRow]:
    made = [make_request(recipe, defect, index, normals, sources) for index in indices]
    requests = [request for request, _ in made]
    rows = []
    for (request, normal_name), pair in zip(made, generator.sample(requests), strict=True):
        quality, reason = inspect_pair(pair, request.normal_image, recipe)
        image, mask = f"images/{pair.sample_id}.png", f"masks/{pair.sample_id}.png"
        if not reason:
            save_png(pair.image, folder / image)
            save_png(pair.mask.astype(np.uint8) * 255, folder / mask)
        rows.append(
            ManifestRow(
                sample_id=pair.sample_id,
                product=request.product,
                defect=defect,
                image=None if reason else image,
                mask=None if reason else mask,
                generator=recipe.generator,
                seed=request.seed,
                source_image=normal_name,
                source_mask=request.source.name,
                prompt=pair.facts.get("prompt"),
                strength=pair.facts.get("strength"),
                mask_area=int(pair.mask.sum()),
                quality=quality,
                accepted=not reason,
                reject_reason=reason or None,
                model_digest=recipe.model_digest,
                image_sha256=pixel_digest(pair.image),
            )
        )
    return rows


def _until_enough(batches: range, rows: list[ManifestRow], wanted: int) -> Iterator[int]:
    for batch in batches:
        if sum(row.accepted for row in rows) >= wanted:
            return
        yield batch


def _expected(recipe: Recipe) -> int:
    return -(-recipe.per_defect // recipe.batch_size)


def _drop_surplus(rows: list[ManifestRow], wanted: int, folder: Path) -> list[ManifestRow]:
    """The last batch may accept more than asked for: the surplus goes, files and rows, so that counts are equal."""
    kept, accepted = [], 0
    for row in rows:
        if row.accepted and accepted == wanted:
            (folder / row.image).unlink(missing_ok=True)
            (folder / row.mask).unlink(missing_ok=True)
            continue
        accepted += row.accepted
        kept.append(row)
    return kept


def _write_summary(rows: Sequence[ManifestRow], path: Path) -> None:
    reasons: dict[str, int] = {}
    for row in rows:
        if not row.accepted:
            kind = row.reject_reason.split(",")[0].rstrip("0123456789. ")
            reasons[kind] = reasons.get(kind, 0) + 1
    accepted = sum(row.accepted for row in rows)
    summary = {
        "draws": len(rows),
        "accepted": accepted,
        "acceptance_rate": round(accepted / max(1, len(rows)), 4),
        "rejected": reasons,
    }
    path.write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
