"""segment: the downstream judge of one arm, into `data/segment/<product>/<arm>` and `metrics/segment/`."""

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.data.records import Record, save_png
from defect_core.errors import InputError
from defect_core.evaluation.segmentation import Sample, SegmenterConfig, load_samples
from defect_core.evaluation.segmentation.data import auto_share, hold_out, synthetic_share
from defect_core.metrics.spread import over_seeds
from defect_core.project.arms import Arm
from defect_core.project.loading import split_records_of, this_device
from defect_core.project.params import AUTO, Segment
from defect_core.project.paths import Project, write_json

GOOD_LIMIT = 256
SHOWN_MAPS = 24
INTERVAL = "95 % of the means over seeds, test images drawn with replacement"


def run(project: Project, product: str, arm: str) -> None:
    from defect_core.evaluation.segmentation.model import save_segmenter

    settings, chosen = project.params.segment, project.params.arm(arm)
    curves: list[dict[str, Any]] = []
    key = {"settings": settings.model_dump(), "arm": arm}
    with project.building(f"data/segment/{product}/{arm}", key) as work:

        def keep(number: int, config: SegmenterConfig, trained: Any, result: Any, records: list[Record]) -> None:
            curves.append({"seed": settings.seeds[number], "points": trained.curve})
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
                defects = sum(record.mask is not None for record in records)
                _save_maps(work, [record.image for record in records], result.maps, defects)

        folders = synthetic_folders(project, product, chosen)
        measured = measure(project, product, arm, folders, keep, chosen.fraction)
        (work / "curves.json").write_text(json.dumps(curves, indent=2, sort_keys=True) + "\n")
    write_json(project.path(f"metrics/segment/{product}/{arm}.json"), measured)


def measure(
    project: Project,
    product: str,
    arm: str,
    folders: list[Path],
    keep: Callable[..., None] | None = None,
    fraction: float | None = None,
) -> dict[str, Any]:
    """Train and test one segmenter per seed, with the accepted pairs of some synthetic sets.

    Args:
        arm: names the result.
        folders: of synthetic sets; none for a training on real images alone.
        keep: called after each seed with its number, the segmenter's config, what training and evaluation returned,
            and the records tested.
        fraction: part of the defect places that goes to synthetic pairs; None: `segment.synthetic_fraction`.

    Raises:
        InputError: a set without an accepted pair.
    """
    from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
    from defect_core.evaluation.segmentation.train import train_segmenter

    settings = project.params.segment
    images = read_images(project, product, folders)
    config = segmenter_config(settings, fraction, images.kinds)
    last, best = [], []
    for number, seed in enumerate(settings.seeds):
        label = f"segmenter {product} {arm}, seed {seed} ({number + 1}/{len(settings.seeds)})"
        trained = train_segmenter(
            images.real,
            images.good,
            images.synthetic,
            config,
            project.params.seed * 1000 + seed,
            label,
            this_device(),
        )
        last.append(evaluate_segmenter(trained.model, images.tested, settings.image_score))
        if trained.best is not None:
            best.append(evaluate_segmenter(trained.best, images.tested, settings.image_score))
        if keep is not None:
            keep(number, config, trained, last[-1], images.records)
    result = summarise(settings.seeds, last, project.params.seed)
    result |= {"product": product, "arm": arm}
    result["protocol"] = last[0].scores["protocol"] | protocol_of(config, images) | {"seeds": len(settings.seeds)}
    if len(best) == len(last):
        result["best_on_validation"] = summarise(settings.seeds, best, project.params.seed)
    return result


class ArmImages(NamedTuple):
    """What an arm trains on (`real` defects, `good` images, `synthetic` defects) and is tested on, with the records
    of the tested images in the same order; `kinds`: product and defect type of each real one.
    """

    kinds: list[tuple[str, str]]
    real: list[Sample]
    good: list[Sample]
    synthetic: list[Sample]
    tested: list[Sample]
    records: list[Record]


def read_images(project: Project, product: str, folders: Sequence[Path]) -> ArmImages:
    """The images of one product at the segmenter's size, with the accepted pairs of some synthetic sets."""
    size, raw = project.params.segment.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, side) for side in ("train", "test"))
    ordered = [r for r in test if r.mask is not None] + [r for r in test if r.mask is None]
    defects = [r for r in train if r.mask is not None]
    return ArmImages(
        kinds=[(product, r.defect) for r in defects],
        real=load_samples(defects, raw, size),
        good=load_samples([r for r in train if r.mask is None], raw, size, limit=GOOD_LIMIT),
        synthetic=[sample for folder in folders for sample in _accepted(project, folder, size)],
        tested=load_samples(ordered, raw, size),
        records=ordered,
    )


def segmenter_config(
    settings: Segment, fraction: float | None = None, kinds: Sequence[Hashable] = ()
) -> SegmenterConfig:
    """The segmenter that params.yaml asks for.

    Args:
        fraction: goes before its synthetic fraction.
        kinds: the defect type of each real training image, which a synthetic fraction of `auto` is counted from.
    """
    share = settings.synthetic_fraction if fraction is None else fraction
    if share == AUTO:
        share = auto_share(len(kinds) / max(1, len(set(kinds))))
    return SegmenterConfig(
        image_size=settings.image_size,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        architecture=settings.architecture,
        encoder=settings.encoder,
        encoder_weights=settings.encoder_weights,
        frozen_stages=settings.frozen_stages,
        synthetic_fraction=share,
        validation_fraction=settings.validation_fraction,
    )


def protocol_of(config: SegmenterConfig, images: ArmImages) -> dict[str, Any]:
    """What the numbers of an arm rest on; the same for every arm but for the synthetic pairs and their share."""
    learned = len(hold_out(images.real, config.validation_fraction)[0])
    return {
        "train_defects": len(images.real),
        "validation_defects": len(images.real) - learned,
        "train_good": len(images.good),
        "synthetic": len(images.synthetic),
        "synthetic_share": round(synthetic_share(config.synthetic_fraction, learned, len(images.synthetic)), 4),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "good_per_batch": config.good_per_batch if images.good else 0,
        "network": f"{config.architecture}, {config.encoder}, weights: {config.encoder_weights}",
        "model": "of the last step",
        "interval": INTERVAL,
    }


def summarise(seeds: Sequence[int], results: Sequence[Any], base_seed: int) -> dict[str, Any]:
    """What the evaluations of all seeds come to.

    Returns:
        `mean`, `std` and `reasons` (see `metrics.spread.over_seeds`), `interval` by score, None where it is not
        known, and `per_seed`.
    """
    from defect_core.evaluation.segmentation.evaluate import PRO_FPR_LIMIT
    from defect_core.metrics.bootstrap import bootstrap_intervals

    slim = [{k: v for k, v in result.scores.items() if k != "protocol"} for result in results]
    per_seed = [{"seed": seed, **scores} for seed, scores in zip(seeds, slim, strict=True)]
    found = over_seeds(slim)
    intervals = bootstrap_intervals([result.tables for result in results], base_seed, fpr_limit=PRO_FPR_LIMIT)
    return {
        **found._asdict(),
        "interval": {name: intervals.get(name) if found.mean[name] is not None else None for name in found.mean},
        "per_seed": per_seed,
    }


def synthetic_folders(project: Project, product: str, arm: Arm) -> list[Path]:
    """The folders of the synthetic sets that an arm trains on."""
    return [project.path(f"data/synthetic/{product}/{generator}") for generator in arm.generators]


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
