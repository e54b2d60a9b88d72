"""detect: anomalib's detectors on one product, with and without generated good images, into `metrics/detect/`.

The same test side and the same scores as the segmenter's; what no detector learns from is a defect.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.errors import InputError
from defect_core.evaluation.segmentation import Sample, load_samples
from defect_core.evaluation.segmentation.config import DetectorConfig
from defect_core.generators.registry import generator_capabilities
from defect_core.project.loading import split_records_of
from defect_core.project.params import Detect
from defect_core.project.paths import Project, write_json
from defect_core.stages.segment import GOOD_LIMIT, INTERVAL, summarise

NO_THRESHOLD = "distances have no threshold of their own"


def run(project: Project, product: str) -> None:
    settings = project.params.detect
    assert settings is not None
    size, raw = settings.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, side) for side in ("train", "test"))
    good = load_samples([r for r in train if r.mask is None], raw, size, limit=GOOD_LIMIT)
    tested = load_samples(test, raw, size)
    sets = {"real": [], **_normals(project, product, size)}
    rows = [
        _measure(project, settings, product, model, name, good, made, tested)
        for model in settings.models
        for name, made in sets.items()
    ]
    write_json(project.path(f"metrics/detect/{product}.json"), {"product": product, "rows": rows})


def _normals(project: Project, product: str, size: int) -> dict[str, list[Sample]]:
    """Generated good images, by generator; none where the stage that draws them is off."""
    if project.params.normals is None:
        return {}
    found = {}
    for name in project.params.generators:
        if generator_capabilities(name).generates_normals:
            folder = project.path(f"data/normals/{product}/{name}")
            found[name] = load_samples(read_manifest(folder / "manifest.parquet"), folder, size)
    return found


def _measure(
    project: Project,
    settings: Detect,
    product: str,
    model: str,
    normals: str,
    good: Sequence[Sample],
    made: Sequence[Sample],
    tested: Sequence[Sample],
) -> dict[str, Any]:
    from defect_core.evaluation.detection.anomalib_models import fit_detector
    from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter

    if not good:
        raise InputError(f"product {product}: has no good training images; expected at least one to learn from")
    config = DetectorConfig(model=model, **settings.model_dump(exclude={"models", "seeds", "image_size"}))
    images = np.stack([sample.image for sample in (*good, *made)])
    results = []
    for number, seed in enumerate(settings.seeds):
        label = f"{model} {product}, normals {normals}, seed {seed} ({number + 1}/{len(settings.seeds)})"
        fitted = fit_detector(images, config, project.params.seed * 1000 + seed, label, project.root)
        result = evaluate_segmenter(fitted, tested, project.params.segment.image_score)
        if model == "patchcore":
            result.scores["iou"] = None
            result.scores["reasons"] = {**result.scores["reasons"], "iou": NO_THRESHOLD}
        results.append(result)
    found = summarise(settings.seeds, results, project.params.seed)
    protocol = results[0].scores["protocol"] | {
        "train_good": len(good),
        "generated_good": len(made),
        "seeds": len(settings.seeds),
        "interval": INTERVAL,
    }
    protocol |= {"network": "anomalib's DRAEM", "steps": config.steps, "batch_size": config.batch_size}
    if model == "patchcore":
        protocol["network"] = f"{config.backbone}, stages {list(config.layers)}, weights: {config.weights}"
        protocol["coreset"] = config.coreset
        del protocol["steps"], protocol["batch_size"], protocol["iou_threshold"]
    return {"model": model, "normals": normals, **found, "protocol": protocol}
