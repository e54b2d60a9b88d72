"""finetune_catalogue: one generator learns all products together, into `data/generator/catalogue/<generator>`."""

import shutil

from defect_core.generators.base import derive_seed
from defect_core.generators.registry import generator_capabilities, generator_class, weights_folder
from defect_core.project.loading import load_examples, open_original
from defect_core.project.paths import Project, folder_digest


def run(project: Project, generator: str) -> None:
    params = project.params
    config = params.generator_settings(generator)
    # the backbone as it is: one adapted to a product would be wrong for the others
    backbone = open_original(project) if generator_capabilities(generator).uses_backbone else None
    examples = [example for product in params.products for example in load_examples(project, product, "train")]
    folder = weights_folder("", generator)
    key = {
        "config": config.model_dump(mode="json"),
        "seed": params.seed,
        "backbone": backbone and backbone.digest,
        "raw": {product: folder_digest(project.path(f"data/raw/{product}")) for product in params.products},
        "train": [[example.product, example.name] for example in examples],
    }
    with project.building(folder, key) as work:
        fitted = generator_class(generator).create(config, backbone)
        checkpoints = project.state / "checkpoints" / work.parent.name / work.name
        fitted.fit(examples, checkpoints, derive_seed(params.seed, "", generator, "fit", 0))
        fitted.save(work)
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)
