"""finetune_catalogue: trains one generator on all products together, into `data/generator/catalogue/<generator>`."""

from defect_core.data.files import folder_digest
from defect_core.generators.registry import generator_capabilities, generator_class
from defect_core.project.backbones import open_project_backbone
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.seeds import derive_seed


def run(project: Project, generator: str) -> None:
    """Run the stage for one generator."""
    params = project.params
    config = params.generator_settings(generator)
    # The project's backbone: one adapted to a product would be wrong for the others.
    backbone = open_project_backbone(project) if generator_capabilities(generator).uses_backbone else None
    examples = [example for product in params.products for example in load_examples(project, product, "train")]
    key = {
        "config": config.model_dump(mode="json"),
        "seed": params.seed,
        "backbone": backbone and backbone.digest,
        "raw": {product: folder_digest(project.path(f"data/raw/{product}")) for product in params.products},
        "train": [[example.product, example.name] for example in examples],
    }
    with project.building(params.generator_folder("", generator), key) as work:
        trained = generator_class(generator).create(config, backbone)
        trained.fit(examples, project.checkpoints(work), derive_seed(params.seed, "", generator, "fit", 0))
        trained.save(work)
