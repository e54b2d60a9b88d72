"""segment: the downstream judge of one arm, into `data/segment/<product>/<arm>` and `metrics/segment/`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.data.records import Record, save_png
from defect_core.errors import InputError
from defect_core.examples import split_records_of
from defect_core.params import BASELINE_ARM, MIX_ARM
from defect_core.project import Project, write_json
from defect_core.segmentation import Sample, SegmenterConfig, load_samples

GOOD_LIMIT = 256
SHOWN_MAPS = 24


def run(project: Project, product: str, arm: str) -> None:
    from defect_core.segmentation.model import save_segmenter

    settings = project.params.segment
    curves: list[dict[str, Any]] = []
    key = {"settings": settings.model_dump(), "arm": arm}
    with project.building(f"data/segment/{product}/{arm}", key) as work:

        def keep(number: int, config: SegmenterConfig, trained: Any, result: Any, records: list[Record]) -> None:
            curves.append({"seed": settings.seeds[number], "points": trained.curve})
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
                defects = sum(record.mask is not None for record in records)
                _save_maps(work, [record.image for record in records], result.maps, defects)

        measured = measure(project, product, arm, _synthetic(project, product, arm), keep)
        (work / "curves.json").write_text(json.dumps(curves, indent=2, sort_keys=True) + "\n")
    write_json(project.path(f"metrics/segment/{product}/{arm}.json"), measured)


def measure(
    project: Project, product: str, arm: str, folders: list[Path], keep: Callable[..., None] | None = None
) -> dict[str, Any]:
    """Train and test one segmenter per seed, with the accepted pairs of some synthetic sets.

    Args:
        arm: names the result.
        folders: of synthetic sets; none for a training on real images alone.
        keep: called after each seed with its number, the segmenter's config, what training and evaluation returned,
            and the records tested.

    Raises:
        InputError: a set without an accepted pair.
    """
    from defect_core.metrics.bootstrap import bootstrap_intervals
    from defect_core.segmentation.evaluate import PRO_FPR_LIMIT, evaluate_segmenter
    from defect_core.segmentation.train import train_segmenter

    settings = project.params.segment
    config = SegmenterConfig(
        image_size=settings.image_size,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        architecture=settings.architecture,
        encoder=settings.encoder,
        encoder_weights=settings.encoder_weights,
        frozen_stages=settings.frozen_stages,
        synthetic_fraction=settings.synthetic_fraction,
        val_fraction=settings.validation_fraction,
    )
    size, raw = settings.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, side) for side in ("train", "test"))
    real = load_samples([r for r in train if r.mask is not None], raw, size)
    good = load_samples([r for r in train if r.mask is None], raw, size, limit=GOOD_LIMIT)
    synthetic = [sample for folder in folders for sample in _accepted(project, folder, size)]
    ordered = [r for r in test if r.mask is not None] + [r for r in test if r.mask is None]
    tested = load_samples(ordered, raw, size)

    per_seed: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    tables = []
    for number, seed in enumerate(settings.seeds):
        label = f"segmenter {product} {arm}, seed {seed} ({number + 1}/{len(settings.seeds)})"
        trained = train_segmenter(real, good, synthetic, config, project.params.seed * 1000 + seed, label)
        result = evaluate_segmenter(trained.model, tested)
        per_seed.append({"seed": seed, **result.scores})
        tables.append(result.tables)
        if trained.best is not None:
            best.append({"seed": seed, **evaluate_segmenter(trained.best, tested).scores})
        if keep is not None:
            keep(number, config, trained, result, ordered)
    counts = {"train_defects": len(real), "train_good": len(good), "synthetic": len(synthetic)}
    summary = summarise(product, arm, per_seed, counts)
    intervals = bootstrap_intervals(tables, project.params.seed, fpr_limit=PRO_FPR_LIMIT)
    summary["interval"] = {name: intervals.get(name) for name in summary["mean"]}
    summary["protocol"]["interval"] = "95 % of the means over seeds, test images drawn with replacement"
    summary["protocol"]["network"] = f"{config.architecture}, {config.encoder}, weights: {config.encoder_weights}"
    if len(best) == len(per_seed):
        chosen = summarise(product, arm, best, counts)
        summary["best_on_validation"] = {name: chosen[name] for name in ("mean", "std", "per_seed")}
    return summary


def summarise(product: str, arm: str, per_seed: list[dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds of every score; None where a seed has none."""
    names = [name for name, value in per_seed[0].items() if isinstance(value, float) and "threshold" not in name]
    mean, spread = {}, {}
    for name in names:
        values = [scores[name] for scores in per_seed]
        mean[name] = round(float(np.mean(values)), 6) if None not in values else None
        several = None not in values and len(values) > 1
        spread[name] = round(float(np.std(values, ddof=1)), 6) if several else None
    protocol = {**per_seed[0]["protocol"], **counts, "model": "of the last step", "seeds": len(per_seed)}
    slim = [{k: v for k, v in scores.items() if k != "protocol"} for scores in per_seed]
    return {"product": product, "arm": arm, "mean": mean, "std": spread, "per_seed": slim, "protocol": protocol}


def _synthetic(project: Project, product: str, arm: str) -> list[Path]:
    """The folders of the synthetic sets that an arm trains on."""
    if arm == BASELINE_ARM:
        return []
    generators = project.params.generators if arm == MIX_ARM else (arm,)
    return [project.path(f"data/synthetic/{product}/{generator}") for generator in generators]


def _accepted(project: Project, folder: Path, size: int) -> list[Sample]:
    rows = [row for row in read_manifest(folder / "manifest.parquet") if row.accepted]
    if not rows:
        where = folder.relative_to(project.root).as_posix()
        raise InputError(f"{where}: holds no accepted pair; expected at least one")
    return load_samples(rows, folder, size)


def _save_maps(folder: Path, names: list[str], maps: np.ndarray, defects: int) -> None:
    """Score maps of some test images, evenly over the defects first, as 8-bit PNG."""
    count = min(SHOWN_MAPS, defects)
    chosen = sorted({i * defects // count for i in range(count)}) if count else []
    shown = {}
    for number, index in enumerate(chosen):
        file = f"maps/{number:03d}.png"
        save_png(np.rint(maps[index] * 255).astype(np.uint8), folder / file)
        shown[file] = names[index]
    (folder / "maps.json").write_text(json.dumps(shown, indent=2, sort_keys=True) + "\n")
