"""finetune: one generator learns one product, into `data/generator/<product>/<generator>`."""

import shutil

from defect_core.generators.base import derive_seed
from defect_core.generators.registry import generator_class
from defect_core.project.loading import load_examples, open_backbone
from defect_core.project.paths import Project, folder_digest


def run(project: Project, product: str, generator: str) -> None:
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
        fitted = generator_class(generator).create(config, backbone)
        checkpoints = project.state / "checkpoints" / work.parent.name / work.name
        fitted.fit(examples, checkpoints, derive_seed(params.seed, product, generator, "fit", 0))
        fitted.save(work)
    shutil.rmtree(project.state / "checkpoints" / work.parent.name, ignore_errors=True)
