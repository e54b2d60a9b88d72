"""normals: normal images of one generator, into `data/normals/<product>/<generator>`, and their scores."""

from defect_core.data.files import folder_digest, write_json
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import GOOD, load_image
from defect_core.errors import InputError
from defect_core.metrics.normal_images import score_normals
from defect_core.metrics.store import FeatureStore
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.project.synthesis import load_project_generator
from defect_core.synthesis.normal_images import synthesize_normals


def run(project: Project, product: str, generator: str) -> None:
    """Run the stage for one product and generator."""
    params = project.params
    if params.normals is None:
        raise InputError("params.yaml: normals: missing; the stage normals needs this section")
    train, test = (
        [e for e in load_examples(project, product, split) if e.mask is None and e.defect == GOOD]
        for split in ("train", "test")
    )
    if not train:
        raise InputError(f"product {product}: has no normal training images; expected at least one to start from")
    digest = folder_digest(project.path(project.params.generator_folder(product, generator)))
    key = {
        "count": params.normals.count,
        "seed": params.seed,
        "model": digest,
        "good": [example.name for example in train],
    }
    relative = f"data/normals/{product}/{generator}"
    with project.building(relative, key) as work:
        trained = load_project_generator(project, product, generator)
        synthesize_normals(trained, product, train, params.normals.count, params.seed, digest, work)
    folder = project.path(relative)
    generated = [load_image(folder / row.image) for row in manifest_rows(folder / "manifest.parquet") if row.image]
    result = score_normals(
        [example.image for example in train],
        [example.image for example in test],
        generated,
        image_size=params.score.image_size,
        seed=params.seed,
        store=FeatureStore(project.state / "features"),
    )
    write_json(
        project.path(f"metrics/normals/{product}/{generator}.json"),
        {"product": product, "generator": generator, **result},
    )
