"""finetune: trains one generator on one product, into `data/generator/<product>/<generator>`."""

from defect_core.data.files import folder_digest
from defect_core.generators.registry import generator_class
from defect_core.project.backbones import open_backbone
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.seeds import derive_seed


def run(project: Project, product: str, generator: str) -> None:
    """Run the stage for one product and generator."""
    params = project.params
    config = params.generator_settings(generator, product)
    backbone = open_backbone(project, product, generator)
    examples = load_examples(project, product, "train")
    key = {
        "config": config.model_dump(mode="json"),
        "seed": params.seed,
        "backbone": backbone and backbone.digest,
        "raw": folder_digest(project.path(f"data/raw/{product}")),
        "train": [example.name for example in examples],
    }
    with project.building(f"data/generator/{product}/{generator}", key) as work:
        trained = generator_class(generator).create(config, backbone)
        seed = derive_seed(params.seed, product, generator, "fit", 0)
        trained.fit(examples, project.checkpoints(work), seed)
        trained.save(work)
