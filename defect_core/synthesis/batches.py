"""From a fitted generator to a synthetic set: requests, pairs, the filter, the manifest; resumable at any batch.

A sample is decided by (base seed, product, generator, defect, index) alone, so a run that was killed, or cut in
shards, makes the same files. Rejected draws stay in the manifest with their reason; their images are not kept.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.masks import touches_border
from defect_core.data.placement import place
from defect_core.data.records import pixel_digest, save_png
from defect_core.errors import InputError
from defect_core.generators.base import Example, Generator, SampleRequest, derive_seed
from defect_core.progress import track
from defect_core.synthesis.filter import NearestDefectIndex, measure_pair

RECIPE_FILE = "recipe.json"
_ALIKE = 0.2  # most difference of log aspect ratios at which a cut mask keeps its shape, about
_FEWEST_ALIKE = 32  # good images, or the drawn pairs would repeat a few backgrounds
# a defect and the number of a batch of it
Batch = tuple[str, int]


@dataclass(frozen=True)
class SynthesisPlan:
    """What to make.

    Attributes:
        per_defect: accepted pairs wanted of every defect type; or of each by name, where they differ.
        batch_size: requests answered at once.
        max_draws: bound on requests per wanted pair.
        min_change: least mean absolute change inside the mask, in grey levels of 255.
        min_area: least mask area in pixels.
        model_digest: of the generator's folder, for the manifest.
        max_change_outside: most mean absolute change outside the mask, in grey levels; None for no limit.
        min_on_product: least part of the mask on the product, 0 to 1.
        min_distance: least distance to a real training example, see `NearestDefectIndex`.
    """

    product: str
    generator: str
    base_seed: int
    per_defect: int | dict[str, int]
    batch_size: int
    max_draws: float
    min_change: float
    min_area: int
    model_digest: str
    max_change_outside: float | None = None
    min_on_product: float = 0.0
    min_distance: float = 0.0

    def wanted(self, defect: str) -> int:
        """Accepted pairs wanted of a defect type."""
        return self.per_defect if isinstance(self.per_defect, int) else self.per_defect[defect]


def synthesize(generator: Generator, recipe: SynthesisPlan, examples: Sequence[Example], folder: Path) -> None:
    """Fill `folder` with `images/`, `masks/`, `manifest.parquet`, `summary.json` and `recipe.json`.

    Args:
        generator: fitted on the product.
        recipe: what to make.
        examples: the training side of the split, good and defective; and examples of other products, of the defects
            that the generator is to draw here though the product has none.
        folder: holds what an earlier, killed call left; its finished batches are kept.

    Raises:
        InputError: no good images to draw on.
    """
    defects = defects_of(recipe, examples)
    while batches := next_batches(recipe, defects, folder):
        sample_batches(generator, recipe, examples, folder, batches)
    gather(recipe, defects, folder)


def defects_of(recipe: SynthesisPlan, examples: Sequence[Example]) -> list[str]:
    """The defects that are drawn, in their order.

    Raises:
        InputError: no good images to draw on.
    """
    if not _normals(recipe, examples):
        raise InputError(f"product {recipe.product}: has no good training images to draw defects on")
    return sorted({example.defect for example in examples if example.mask is not None})


def next_batches(recipe: SynthesisPlan, defects: Sequence[str], folder: Path) -> list[Batch]:
    """The batches that `folder` lacks and that are needed whatever they hold; none once all defects are done.

    A batch that is not there yet counts as accepted whole. So those named here are the ones that one process draws
    too, whoever draws them and in whatever order, and none is drawn for nothing.
    """
    found = []
    for defect in defects:
        accepted = 0
        for number in range(-(-_budget(recipe, defect) // recipe.batch_size)):
            if accepted >= recipe.wanted(defect):
                break
            rows = _read_batch(folder, (defect, number))
            if rows is None:
                found.append((defect, number))
            accepted += recipe.batch_size if rows is None else sum(row.accepted for row in rows)
    return found


def sample_batches(
    generator: Generator, recipe: SynthesisPlan, examples: Sequence[Example], folder: Path, batches: Sequence[Batch]
) -> None:
    """Draw batches into `folder`: accepted pairs as files, and a table per batch, which appears last."""
    folder.mkdir(parents=True, exist_ok=True)
    normals = _normals(recipe, examples)
    likenesses: dict[str, NearestDefectIndex] = {}
    for defect, number in track(batches, f"{recipe.generator} draws on {recipe.product}"):
        sources = [example for example in examples if example.defect == defect]
        if defect not in likenesses:
            likenesses[defect] = NearestDefectIndex.of(sources)
        indices = batch_around(recipe, defect, number * recipe.batch_size)
        made = _make_batch(generator, recipe, defect, indices, normals, sources, likenesses[defect], folder)
        kept = folder / _batch_file((defect, number))
        fresh = kept.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(row) for row in made]))
        fresh.rename(kept)


def gather(recipe: SynthesisPlan, defects: Sequence[str], folder: Path) -> None:
    """Make the set of the batches that lie in `folder`: manifest, summary, recipe; what is beyond the wanted number
    goes."""
    rows: list[ManifestRow] = []
    for defect in defects:
        drawn: list[ManifestRow] = []
        for number in range(-(-_budget(recipe, defect) // recipe.batch_size)):
            drawn += _read_batch(folder, (defect, number)) or []
        rows += _drop_surplus(drawn, recipe.wanted(defect), folder)
    write_manifest(rows, folder / "manifest.parquet")
    _write_summary(rows, folder / "summary.json")
    (folder / RECIPE_FILE).write_text(json.dumps(asdict(recipe), indent=2, sort_keys=True) + "\n")
    for batch in folder.glob("batch-*.json"):
        batch.unlink()


def regeneration_seed(seed: int, draw: int) -> int:
    """The base seed of a project's `draw`-th set: the project's own seed at first, another one for each fresh draw."""
    return seed if draw == 0 else derive_seed(seed, "", "", "draw", draw)


def make_request(
    recipe: SynthesisPlan, defect: str, index: int, normals: Sequence[Example], sources: Sequence[Example]
) -> tuple[SampleRequest, str]:
    """The index-th request for a defect, and the name of its normal image.

    A good image and a real example are drawn at random, and the example's mask is placed where the good image
    looks like the example's surroundings. Where the border cuts the mask, good images of about its image's shape are
    preferred, for such a mask is scaled with its frame (`place`).
    """
    seed = derive_seed(recipe.base_seed, recipe.product, recipe.generator, defect, index)
    rng = np.random.default_rng(seed)
    normal = normals[int(rng.integers(len(normals)))]
    source = sources[int(rng.integers(len(sources)))]
    if touches_border(source.mask) and _unlike(normal, source) > _ALIKE:
        nearest = sorted(_unlike(each, source) for each in normals)[:_FEWEST_ALIKE]
        alike = [each for each in normals if _unlike(each, source) <= max(_ALIKE, nearest[-1])]
        normal = alike[int(rng.integers(len(alike)))]
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


def batch_around(recipe: SynthesisPlan, defect: str, index: int) -> range:
    """The indices of a defect that are drawn together with this one.

    A sample's seed decides it up to the last bit of the arithmetic, and that one may depend on the size of the batch.
    """
    start = index - index % recipe.batch_size
    return range(start, min(start + recipe.batch_size, _budget(recipe, defect)))


def _normals(recipe: SynthesisPlan, examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.mask is None and example.product == recipe.product]


def _unlike(one: Example, other: Example) -> float:
    """How far the shapes of two images differ: the difference of the logarithms of their aspect ratios."""
    ratios = [each.image.shape[0] / each.image.shape[1] for each in (one, other)]
    return float(abs(np.log(ratios[0] / ratios[1])))


def _batch_file(batch: Batch) -> str:
    return f"batch-{batch[0]}-{batch[1]:05d}.json"


def _read_batch(folder: Path, batch: Batch) -> list[ManifestRow] | None:
    kept = folder / _batch_file(batch)
    return [ManifestRow(**row) for row in json.loads(kept.read_text())] if kept.is_file() else None


def _make_batch(
    generator: Generator,
    recipe: SynthesisPlan,
    defect: str,
    indices: range,
    normals: Sequence[Example],
    sources: Sequence[Example],
    likeness: NearestDefectIndex,
    folder: Path,
) -> list[ManifestRow]:
    made = [make_request(recipe, defect, index, normals, sources) for index in indices]
    requests = [request for request, _ in made]
    rows = []
    for (request, normal_name), pair in zip(made, generator.sample(requests), strict=True):
        seen = measure_pair(pair, request.normal_image, recipe, likeness)
        reason = seen.reason
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
                source_product=request.source.product,
                prompt=pair.facts.get("prompt"),
                strength=pair.facts.get("strength"),
                mask_area=int(pair.mask.sum()),
                quality=seen.quality,
                change_inside=seen.change_inside,
                change_outside=seen.change_outside,
                on_product=seen.on_product,
                nearest_image=seen.nearest,
                nearest_distance=seen.distance,
                accepted=not reason,
                reject_reason=reason or None,
                model_digest=recipe.model_digest,
                image_sha256=pixel_digest(pair.image),
            )
        )
    return rows


def _budget(recipe: SynthesisPlan, defect: str) -> int:
    return int(np.ceil(recipe.wanted(defect) * recipe.max_draws))


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
    distances = [row.nearest_distance for row in rows if row.accepted and row.nearest_distance is not None]
    qualities = [row.quality for row in rows if row.accepted]
    summary = {
        "draws": len(rows),
        "accepted": accepted,
        "acceptance_rate": round(accepted / max(1, len(rows)), 4),
        "rejected": reasons,
        "median_quality": round(float(np.median(qualities)), 4) if qualities else None,
        "median_nearest_distance": round(float(np.median(distances)), 4) if distances else None,
    }
    path.write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
