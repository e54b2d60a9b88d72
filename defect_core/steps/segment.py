"""segment: the downstream judge of one arm, into `data/segment/<product>/<arm>` and `metrics/segment/`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.data.records import save_png
from defect_core.errors import InputError
from defect_core.examples import split_records_of
from defect_core.params import BASELINE_ARM, MIX_ARM
from defect_core.project import Project, write_json
from defect_core.segmentation import Sample, SegmenterConfig, load_samples

GOOD_LIMIT = 256
SHOWN_MAPS = 24


def run(project: Project, product: str, arm: str) -> None:
    from defect_core.segmentation.evaluate import evaluate_segmenter
    from defect_core.segmentation.model import save_segmenter
    from defect_core.segmentation.train import train_segmenter

    settings = project.params.segment
    config = SegmenterConfig(
        image_size=settings.image_size,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        frozen_stages=settings.frozen_stages,
        synthetic_fraction=settings.synthetic_fraction,
        val_fraction=settings.validation_fraction,
    )
    size, raw = settings.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, side) for side in ("train", "test"))
    real = load_samples([r for r in train if r.mask is not None], raw, size)
    good = load_samples([r for r in train if r.mask is None], raw, size, limit=GOOD_LIMIT)
    synthetic = _synthetic(project, product, arm, size)
    ordered = [r for r in test if r.mask is not None] + [r for r in test if r.mask is None]
    tested = load_samples(ordered, raw, size)

    per_seed: list[dict[str, Any]] = []
    curves = []
    key = {"settings": settings.model_dump(), "arm": arm}
    with project.building(f"data/segment/{product}/{arm}", key) as work:
        for number, seed in enumerate(settings.seeds):
            label = f"segmenter {product} {arm}, seed {seed} ({number + 1}/{len(settings.seeds)})"
            trained = train_segmenter(real, good, synthetic, config, project.params.seed * 1000 + seed, label)
            result = evaluate_segmenter(trained.model, tested)
            per_seed.append({"seed": seed, **result.scores})
            curves.append({"seed": seed, "points": trained.curve})
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
                _save_maps(work, [r.image for r in ordered], result.maps, sum(r.mask is not None for r in ordered))
        (work / "curves.json").write_text(json.dumps(curves, indent=2, sort_keys=True) + "\n")
    counts = {"train_defects": len(real), "train_good": len(good), "synthetic": len(synthetic)}
    write_json(project.path(f"metrics/segment/{product}/{arm}.json"), summarise(product, arm, per_seed, counts))


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


def _synthetic(project: Project, product: str, arm: str, size: int) -> list[Sample]:
    if arm == BASELINE_ARM:
        return []
    generators = project.params.generators if arm == MIX_ARM else (arm,)
    samples: list[Sample] = []
    for generator in generators:
        folder = project.path(f"data/synthetic/{product}/{generator}")
        rows = [row for row in read_manifest(folder / "manifest.parquet") if row.accepted]
        if not rows:
            raise InputError(f"data/synthetic/{product}/{generator}: holds no accepted pair; expected at least one")
        samples += load_samples(rows, folder, size)
    return samples


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
