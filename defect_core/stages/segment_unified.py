"""segment_unified: one segmenter over all products per arm, as SeaS judges, into `data/segment_unified/<arm>` and
`metrics/segment_unified/`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from defect_core.evaluation.segmentation.evaluate import PRO_FPR_LIMIT, Evaluation, evaluate_segmenter
from defect_core.evaluation.segmentation.model import save_segmenter
from defect_core.evaluation.segmentation.train import train_segmenter
from defect_core.metrics.bootstrap import bootstrap_draws
from defect_core.metrics.spread import interval_of, over_seeds
from defect_core.project.loading import this_device
from defect_core.project.paths import Project, write_json
from defect_core.stages.segment import (
    ArmImages,
    protocol_of,
    read_images,
    segmenter_config,
    summarise,
    synthetic_folders,
)

Results = dict[str, list[Evaluation]]


def run(project: Project, arm: str) -> None:
    params, chosen = project.params, project.params.arm(arm)
    settings = params.segment
    steps = params.segment_unified.steps or settings.steps * len(params.products)
    images = {
        product: read_images(project, product, synthetic_folders(project, product, chosen))
        for product in params.products
    }
    whole = ArmImages(*(sum(parts, []) for parts in zip(*images.values(), strict=True)))
    config = replace(segmenter_config(settings, chosen.fraction, whole.kinds), steps=steps)
    last: Results = {product: [] for product in params.products}
    best: Results = {product: [] for product in params.products}
    curves = []
    key = {"settings": settings.model_dump(), "steps": steps, "arm": arm, "products": params.products}
    with project.building(f"data/segment_unified/{arm}", key) as work:
        for number, seed in enumerate(settings.seeds):
            label = f"unified segmenter {arm}, seed {seed} ({number + 1}/{len(settings.seeds)})"
            base = params.seed * 1000 + seed
            trained = train_segmenter(whole.real, whole.good, whole.synthetic, config, base, label, this_device())
            curves.append({"seed": seed, "points": trained.curve})
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
            for results, model in ((last, trained.model), (best, trained.best)):
                for product in params.products if model is not None else ():
                    results[product].append(evaluate_segmenter(model, images[product].tested, settings.image_score))
        (work / "curves.json").write_text(json.dumps(curves, indent=2, sort_keys=True) + "\n")
    measured = over_products(settings.seeds, last, params.seed)
    for product, found in measured["products"].items():
        found["protocol"] = last[product][0].scores["protocol"]
    tested = next(iter(last.values()))[0].scores["protocol"]
    counts = {name: sum(found["protocol"][name] for found in measured["products"].values()) for name in _COUNTS}
    measured["protocol"] = tested | counts | protocol_of(config, whole) | {"seeds": len(settings.seeds)}
    measured["arm"] = arm
    if len(next(iter(best.values()))) == len(settings.seeds):
        measured["best_on_validation"] = over_products(settings.seeds, best, params.seed)
    write_json(project.path(f"metrics/segment_unified/{arm}.json"), measured)


_COUNTS = ("defect_images", "good_images")


def over_products(seeds: Sequence[int], results: Mapping[str, Sequence[Evaluation]], base_seed: int) -> dict[str, Any]:
    """What each product and the plain mean over products come to.

    Returns:
        `products`, by name as `steps.segment.summarise` gives it; and `mean`, `std`, `interval`, `reasons`, `per_seed`
        of the mean over products. A score that one product does not define has no mean over them. The interval draws
        test images within each product.
    """
    products = {
        product: summarise(seeds, found, base_seed * 1000 + number)
        for number, (product, found) in enumerate(results.items())
    }
    names = next(iter(products.values()))["mean"]
    per_seed = []
    for number, seed in enumerate(seeds):
        scores: dict[str, Any] = {"seed": seed, "reasons": {}}
        for name in names:
            values = {product: found["per_seed"][number].get(name) for product, found in products.items()}
            missing = [product for product, value in values.items() if value is None]
            scores[name] = None if missing else round(float(np.mean(list(values.values()))), 6)
            if missing:
                scores["reasons"][name] = f"{missing[0]}: {products[missing[0]]['reasons'].get(name, 'not defined')}"
        per_seed.append(scores)
    drawn = [
        bootstrap_draws([result.tables for result in found], base_seed * 1000 + number, fpr_limit=PRO_FPR_LIMIT)
        for number, found in enumerate(results.values())
    ]
    whole = over_seeds(per_seed)
    interval = {
        name: interval_of(np.mean([draws[name] for draws in drawn], axis=0))
        if whole.mean[name] is not None and name in drawn[0]
        else None
        for name in names
    }
    return {"products": products, **whole._asdict(), "interval": interval, "per_seed": per_seed}
