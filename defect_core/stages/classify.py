"""classify: a classifier of the defect types of one product per arm.

Writes `data/classify/<product>/<arm>` and `metrics/classify/`.
"""

import json
from typing import Any

from defect_core.data.files import write_json, write_text
from defect_core.data.records import Record, image_groups
from defect_core.errors import InputError
from defect_core.project.arm_data import arm_folders, require_pairs
from defect_core.project.device import default_device
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project


def run(project: Project, product: str, arm: str) -> None:
    """Run the stage for one product and arm."""
    from defect_core.evaluation.classification.data import load_views
    from defect_core.evaluation.classification.measure import ClassifierData, measure_classifier, undefined_result
    from defect_core.evaluation.classification.train import save_classifier
    from defect_core.evaluation.weights import find_weights

    config, chosen = project.params.classify, project.params.arm(arm)
    if config is None:
        raise InputError("params.yaml: classify: missing; the stage classify needs this section")
    if chosen.fraction is not None:
        config = config.model_copy(update={"synthetic_fraction": chosen.fraction})
    train: list[Record] = []
    test: list[Record] = []
    several = 0
    for split, chosen_records in (("train", train), ("test", test)):
        groups = image_groups([r for r in split_records_of(project, product, split) if r.mask is not None])
        chosen_records += [rows[0] for rows in groups if len(rows) == 1]
        several += sum(len(rows) > 1 for rows in groups)
    classes = sorted({record.defect for record in train})
    raw = project.path(f"data/raw/{product}")
    result: dict[str, Any] = {"product": product, "arm": arm, "classes": classes}
    with project.building(f"data/classify/{product}/{arm}", {"settings": config.model_dump(), "arm": arm}) as work:
        if len(classes) < 2:
            result |= undefined_result(product, classes)
            write_text(work / "predictions.json", "[]\n")
        else:
            data = ClassifierData(
                classes,
                real=load_views(train, raw, classes, config),
                synthetic=[
                    view
                    for folder in arm_folders(project, product, chosen)
                    for view in load_views(require_pairs(project, folder), folder, classes, config)
                ],
                test=load_views(test, raw, classes, config),
            )
            weights = None
            if config.weights is not None:
                expected = "a safetensors file in torchvision's layout"
                weights = find_weights(config.weights, project.root, "classify.weights", expected)
            runs = measure_classifier(data, config, project.params.seed, f"{product} {arm}", weights, default_device())
            if runs.first_model is not None:
                save_classifier(runs.first_model, config, classes, work / "classifier.safetensors")
            write_text(work / "predictions.json", json.dumps(runs.predictions, sort_keys=True) + "\n")
            write_json(work / "curves.json", runs.curves)
            result |= runs.result
            result["protocol"]["left_out"] = len(test) - len(data.test)
            if several:  # an image with several defect types has no single label
                result["protocol"]["left_out_several_types"] = several
    write_json(project.path(f"metrics/classify/{product}/{arm}.json"), result)
