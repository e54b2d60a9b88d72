"""segment_unified: one segmenter over all products per arm (protocol of SeaS, Dai et al. 2025).

Writes `data/segment_unified/<arm>` and `metrics/segment_unified/`.
"""

from typing import TYPE_CHECKING

from defect_core.data.files import write_json
from defect_core.project.arm_data import arm_folders, load_arm_data, product_scale
from defect_core.project.device import default_device
from defect_core.project.paths import Project
from defect_core.seeds import training_seed
from defect_core.settings import AUTO

if TYPE_CHECKING:
    from defect_core.evaluation.segmentation.data import ArmData

SUMMED_COUNTS = ("defect_images", "normal_images")


def run(project: Project, arm: str) -> None:
    """Run the stage for one arm."""
    from defect_core.evaluation.segmentation.data import ArmData
    from defect_core.evaluation.segmentation.evaluate import Evaluation
    from defect_core.evaluation.segmentation.measure import (
        arm_protocol,
        evaluate_arm,
        resolve_config,
        summarise_over_products,
        training_config,
    )
    from defect_core.evaluation.segmentation.model import save_segmenter
    from defect_core.evaluation.segmentation.train import train_segmenter

    params, chosen = project.params, project.params.arm(arm)
    settings, unified = params.segment, params.segment_unified
    steps = (unified.steps if unified else None) or settings.steps * len(params.products)
    data = _load_products(project, arm)
    all_products = ArmData.concatenate(list(data.values()))
    config = resolve_config(settings, all_products.defect_types, chosen.fraction).model_copy(update={"steps": steps})
    last: dict[str, list[Evaluation]] = {product: [] for product in params.products}
    best: dict[str, list[Evaluation]] = {product: [] for product in params.products}
    curves = []
    key = {"settings": settings.model_dump(), "steps": steps, "arm": arm, "products": params.products}
    with project.building(f"data/segment_unified/{arm}", key) as work:
        for number, seed in enumerate(settings.seeds):
            trained = train_segmenter(
                all_products.real,
                all_products.normal,
                all_products.synthetic,
                training_config(config, all_products),
                training_seed(params.seed, seed),
                f"unified segmenter {arm}, seed {seed} ({number + 1}/{len(settings.seeds)})",
                default_device(),
                all_products.crops,
            )
            curves.append({"seed": seed, "points": trained.curve})
            if number == 0:
                save_segmenter(trained.model, config, work / "segmenter.safetensors")
            for results, model in ((last, trained.model), (best, trained.best)):
                if model is not None:
                    for product in params.products:
                        results[product].append(evaluate_arm(model, data[product], settings.image_score))
        write_json(work / "curves.json", curves)
    measured = summarise_over_products(settings.seeds, last, params.seed)
    for product, summary in measured["products"].items():
        summary["protocol"] = last[product][0].scores["protocol"]
    counts = {
        name: sum(summary["protocol"][name] for summary in measured["products"].values()) for name in SUMMED_COUNTS
    }
    protocol = next(iter(last.values()))[0].scores["protocol"] | counts | arm_protocol(config, all_products)
    measured |= {"protocol": protocol | {"seeds": len(settings.seeds)}, "arm": arm}
    if len(next(iter(best.values()))) == len(settings.seeds):
        measured["best_on_validation"] = summarise_over_products(settings.seeds, best, params.seed)
    write_json(project.path(f"metrics/segment_unified/{arm}.json"), measured)


def _load_products(project: Project, arm: str) -> "dict[str, ArmData]":
    """Return the images of each product; with `image_size: auto` all have tiles of one size."""
    from defect_core.evaluation.segmentation.scale import share_tile

    params, chosen = project.params, project.params.arm(arm)
    scales = {}
    if params.segment.image_size == AUTO:
        scales = share_tile({product: product_scale(project, product) for product in params.products})
    return {
        product: load_arm_data(project, product, arm_folders(project, product, chosen), scales.get(product))[0]
        for product in params.products
    }
