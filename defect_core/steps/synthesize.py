"""synthesize: image-mask pairs with their manifest, into `data/synthetic/<product>/<generator>`."""

from defect_core.examples import load_examples, open_backbone
from defect_core.generators.registry import generator_class
from defect_core.project import Project, folder_digest
from defect_core.synthesis import Recipe, synthesize


def run(project: Project, product: str, generator: str) -> None:
    params = project.params
    folder = project.path(f"data/generator/{product}/{generator}")
    backbone = open_backbone(project, product, generator)
    fitted = generator_class(generator).load(folder, backbone)
    settings = params.synthesize
    digest = folder_digest(folder)
    recipe = Recipe(
        product=product,
        generator=generator,
        base_seed=params.seed,
        per_defect=settings.per_defect,
        batch_size=settings.batch_size,
        max_draws=settings.max_draws,
        min_change=settings.min_change,
        min_area=settings.min_area,
        model_digest=digest,
    )
    examples = load_examples(project, product, "train")
    key = {"recipe": recipe.__dict__, "examples": [example.name for example in examples]}
    with project.building(f"data/synthetic/{product}/{generator}", key) as work:
        synthesize(fitted, recipe, examples, work)
