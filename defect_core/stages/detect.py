"""detect: anomaly detectors on one product, with and without generated normal images, into `metrics/detect/`.

Test images and scores are those of the segmenter. The detectors are trained on normal images only.
"""

from defect_core.data.files import write_json
from defect_core.data.manifest import manifest_rows
from defect_core.errors import InputError
from defect_core.generators.registry import generator_capabilities
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    from defect_core.evaluation.detection.measure import DetectorData, measure_detector
    from defect_core.evaluation.segmentation.data import MAX_NORMAL_IMAGES, load_samples

    params, config = project.params, project.params.detect
    if config is None:
        raise InputError("params.yaml: detect: missing; the stage detect needs this section")
    size, raw = config.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, split) for split in ("train", "test"))
    real = load_samples([r for r in train if r.mask is None], raw, size, limit=MAX_NORMAL_IMAGES)
    tested = load_samples(test, raw, size)
    generated = {"real": []}
    for name in params.generators if params.normals is not None else ():
        if generator_capabilities(name).generates_normals:
            folder = project.path(f"data/normals/{product}/{name}")
            generated[name] = load_samples(manifest_rows(folder / "manifest.parquet"), folder, size)
    rows = []
    for model in config.models:
        for normals, samples in generated.items():
            measured = measure_detector(
                model,
                config,
                DetectorData(real, samples, tested),
                base_seed=params.seed,
                label=f"{product}, normals {normals}",
                image_score=params.segment.image_score,
                weights_folder=project.root,
            )
            rows.append({"normals": normals, **measured})
    write_json(project.path(f"metrics/detect/{product}.json"), {"product": product, "rows": rows})
