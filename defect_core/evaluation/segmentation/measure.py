"""Training and testing of the segmenter of one arm over several seeds."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from defect_core.evaluation.batches import auto_synthetic_fraction, compute_synthetic_fraction, hold_out
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import ArmData
from defect_core.evaluation.segmentation.evaluate import (
    Evaluation,
    Observer,
    ScoreMapModel,
    evaluate_segmenter,
    score_window,
)
from defect_core.evaluation.segmentation.inspection import RegionRecorder, SeedOutcome, summarise_inspection
from defect_core.evaluation.segmentation.thresholds import CrossFit, cross_fit, missing_for_folds
from defect_core.evaluation.segmentation.tiles import evaluate_tiled
from defect_core.evaluation.segmentation.train import TrainedSegmenter, train_segmenter
from defect_core.metrics.bootstrap import ImageTables, bootstrap_intervals, bootstrap_samples
from defect_core.metrics.image_results import ArmScores, make_arm_scores
from defect_core.metrics.localisation import PRO_FPR_LIMIT
from defect_core.metrics.spread import interval_of, over_seeds
from defect_core.seeds import training_seed
from defect_core.settings import AUTO

INTERVAL = "95 % of the means over seeds, test images resampled with replacement"
AfterSeed = Callable[[int, SegmenterConfig, TrainedSegmenter, Evaluation], None]


def resolve_config(
    config: SegmenterConfig, defect_types: Sequence[Hashable], fraction: float | None = None
) -> SegmenterConfig:
    """Return the settings with a number as `synthetic_fraction`, or `pooled`.

    Args:
        config: the settings.
        defect_types: the defect type of each real training image, from which `auto` is computed.
        fraction: replaces `config.synthetic_fraction`; None keeps it.
    """
    resolved = config.synthetic_fraction if fraction is None else fraction
    if resolved == AUTO:
        resolved = auto_synthetic_fraction(len(defect_types) / max(1, len(set(defect_types))))
    return config.model_copy(update={"synthetic_fraction": resolved})


def measure_segmenter(
    data: ArmData,
    config: SegmenterConfig,
    base_seed: int,
    label: str,
    device: str = "cpu",
    after_seed: AfterSeed | None = None,
) -> dict[str, Any]:
    """Train and test one segmenter per seed.

    Args:
        data: images of the arm.
        config: settings from `resolve_config`.
        base_seed: seed of the project.
        label: shown with the progress.
        device: torch device.
        after_seed: called after each seed with its number, the settings, the trained model and its evaluation.

    Returns:
        The result of `summarise_evaluations`, `protocol`, `inspection` (see `summarise_inspection`; `reason` if there
        are no thresholds), and `best_on_validation` if a validation part is held out.
    """
    last: list[Evaluation] = []
    best: list[Evaluation] = []
    tests: list[SeedOutcome] = []
    reason = missing_for_folds(data, config.folds)
    fitted = None
    if not reason:
        fitted = cross_fit(
            data, training_config(config, data), training_seed(base_seed, config.seeds[0]), label, device
        )
    for number, seed in enumerate(config.seeds):
        trained = train_segmenter(
            data.real,
            data.normal,
            data.synthetic,
            training_config(config, data),
            training_seed(base_seed, seed),
            f"segmenter {label}, seed {seed} ({number + 1}/{len(config.seeds)})",
            device,
            data.crops,
        )
        if fitted is None:
            last.append(evaluate_arm(trained.model, data, config.image_score))
        else:
            tests.append(_test_with_thresholds(trained.model, data, fitted, config.image_score))
            last.append(tests[-1].evaluation)
        if trained.best is not None:
            best.append(evaluate_arm(trained.best, data, config.image_score))
        if after_seed is not None:
            after_seed(number, config, trained, last[-1])
    result = summarise_evaluations(config.seeds, last, base_seed)
    result["protocol"] = last[0].scores["protocol"] | arm_protocol(config, data) | {"seeds": len(config.seeds)}
    if len(best) == len(last):
        result["best_on_validation"] = summarise_evaluations(config.seeds, best, base_seed)
    result["inspection"] = (
        {"reason": reason} if fitted is None else summarise_inspection(data, fitted, config.seeds, tests)
    )
    return result


def training_config(config: SegmenterConfig, data: ArmData) -> SegmenterConfig:
    """Return the settings with the side of the training images of an arm as `image_size`: a tile for `auto`."""
    return config if data.scale is None else config.model_copy(update={"image_size": data.scale.tile})


def evaluate_arm(model: ScoreMapModel, data: ArmData, image_score: str, observe: Observer | None = None) -> Evaluation:
    """Return the evaluation of a model on the test images of an arm, with tiles if it has a working resolution."""
    if data.scale is None:
        return evaluate_segmenter(model, data.test, image_score, observe)
    return evaluate_tiled(model, data.test, data.scale, image_score, observe)


def _test_with_thresholds(model: ScoreMapModel, data: ArmData, fitted: CrossFit, image_score: str) -> SeedOutcome:
    """Return the evaluation of a final model and the regions that it finds at its thresholds."""
    points = fitted.thresholds(model, data, image_score)
    side = data.test[0].mask.shape[0] if data.scale is None else data.scale.tile
    recorder = RegionRecorder({key: p.threshold for key, p in points.items()}, score_window(side, image_score))
    evaluation = evaluate_arm(model, data, image_score, recorder)
    return SeedOutcome(evaluation._replace(thresholds=points), recorder.regions)


def arm_protocol(config: SegmenterConfig, data: ArmData) -> dict[str, Any]:
    """Return the numbers and settings behind the scores; equal for all arms except for the synthetic pairs."""
    real, synthetic = len(data.real) // data.crops, len(data.synthetic) // data.crops
    training = len(hold_out(range(real), config.validation_fraction)[0])
    fraction = compute_synthetic_fraction(config.synthetic_fraction, training, synthetic)
    return {
        "train_defects": real,
        "validation_defects": real - training,
        "train_normal": len(data.normal) // data.crops,
        "synthetic": synthetic,
        "synthetic_fraction": round(fraction, 4),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "normal_per_batch": config.normal_per_batch if data.normal else 0,
        "network": f"{config.architecture}, {config.encoder}, weights: {config.encoder_weights}",
        "model": "of the last step",
        "interval": INTERVAL,
    }


def summarise_evaluations(seeds: Sequence[int], results: Sequence[Evaluation], base_seed: int) -> dict[str, Any]:
    """Combine the evaluations of all seeds.

    Args:
        seeds: the seeds.
        results: one evaluation per seed.
        base_seed: seed of the bootstrap.

    Returns:
        `mean`, `std` and `reasons` (see `metrics.spread.over_seeds`), `interval` by score (None if it is not defined),
        and `per_seed`.
    """
    per_seed = [{name: value for name, value in r.scores.items() if name != "protocol"} for r in results]
    summary = over_seeds(per_seed)
    intervals = bootstrap_intervals([r.tables for r in results], base_seed, fpr_limit=PRO_FPR_LIMIT)
    return {
        **summary._asdict(),
        "interval": {name: intervals.get(name) if value is not None else None for name, value in summary.mean.items()},
        "per_seed": [{"seed": seed, **scores} for seed, scores in zip(seeds, per_seed, strict=True)],
    }


def collect_arm_scores(
    images: Sequence[str], tables: Sequence[ImageTables], measured: Mapping[str, Any], base_seed: int
) -> ArmScores:
    """Return the scores of an arm for paired comparisons.

    Args:
        images: names of the test images, in the order of the tables.
        tables: one per seed.
        measured: the result of `measure_segmenter` or `summarise_evaluations`.
        base_seed: seed of the bootstrap.
    """
    targets = (measured.get("inspection") or {}).get("targets") or {}
    thresholds = {target: entry["threshold"] for target, entry in targets.items() if entry.get("threshold")}
    seeds = [scores["seed"] for scores in measured["per_seed"]]
    return make_arm_scores(images, seeds, tables, measured["per_seed"], base_seed, thresholds)


def summarise_over_products(
    seeds: Sequence[int], results: Mapping[str, Sequence[Evaluation]], base_seed: int
) -> dict[str, Any]:
    """Combine the evaluations of one segmenter on several products.

    Args:
        seeds: the seeds.
        results: by product, one evaluation per seed.
        base_seed: base of the bootstrap seeds, one per product.

    Returns:
        `products`: by name, the result of `summarise_evaluations`. `mean`, `std`, `interval`, `reasons`, `per_seed`: of
        the mean over products. A score that is undefined on one product has no mean. The interval resamples test images
        within each product.
    """
    products = {
        product: summarise_evaluations(seeds, evaluations, training_seed(base_seed, number))
        for number, (product, evaluations) in enumerate(results.items())
    }
    names = next(iter(products.values()))["mean"]
    per_seed = []
    for number, seed in enumerate(seeds):
        scores: dict[str, Any] = {"seed": seed, "reasons": {}}
        for name in names:
            values = {product: result["per_seed"][number].get(name) for product, result in products.items()}
            missing = [product for product, value in values.items() if value is None]
            scores[name] = None if missing else round(float(np.mean(list(values.values()))), 6)
            if missing:
                scores["reasons"][name] = f"{missing[0]}: {products[missing[0]]['reasons'].get(name, 'not defined')}"
        per_seed.append(scores)
    resampled = [
        bootstrap_samples([e.tables for e in evaluations], training_seed(base_seed, number), fpr_limit=PRO_FPR_LIMIT)
        for number, evaluations in enumerate(results.values())
    ]
    summary = over_seeds(per_seed)
    interval = {
        name: interval_of(np.mean([samples[name] for samples in resampled], axis=(0, 1)))
        if summary.mean[name] is not None and name in resampled[0]
        else None
        for name in names
    }
    return {"products": products, **summary._asdict(), "interval": interval, "per_seed": per_seed}
