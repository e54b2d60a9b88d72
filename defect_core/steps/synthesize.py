"""synthesize: image-mask pairs with their manifest, into `data/synthetic/<product>/<generator>`."""

from defect_core.errors import InputError
from defect_core.examples import load_examples, open_backbone
from defect_core.generators.base import Example
from defect_core.generators.registry import generator_class, weights_folder
from defect_core.project import Project, folder_digest
from defect_core.synthesis import Recipe, draw_seed, synthesize


def run(project: Project, product: str, generator: str) -> None:
    params = project.params
    folder = project.path(weights_folder(product, generator))
    backbone = open_backbone(project, product, generator)
    fitted = generator_class(generator).load(folder, backbone)
    settings = params.synthesize
    digest = folder_digest(folder)
    recipe = Recipe(
        product=product,
        generator=generator,
        base_seed=draw_seed(params.seed, params.draw(product, generator)),
        per_defect=settings.per_defect,
        batch_size=settings.batch_size,
        max_draws=settings.max_draws,
        min_change=settings.min_change,
        min_area=settings.min_area,
        max_change_outside=settings.max_change_outside,
        min_on_product=settings.min_on_product,
        min_distance=settings.min_distance,
        model_digest=digest,
    )
    examples = examples_for(project, product, generator)
    key = {"recipe": recipe.__dict__, "examples": [[example.product, example.name] for example in examples]}
    with project.building(f"data/synthetic/{product}/{generator}", key) as work:
        synthesize(fitted, recipe, examples, work)


def examples_for(project: Project, product: str, generator: str) -> list[Example]:
    """The training images that requests are made from: the product's own, then those that others lend it."""
    examples = load_examples(project, product, "train")
    return [*examples, *borrowed_examples(project, product, generator, {example.defect for example in examples})]


def borrowed_examples(project: Project, product: str, generator: str, own: set[str]) -> list[Example]:
    """Training examples of other products, of the defects that `zero_shot` asks for on this one.

    Raises:
        InputError: the product has such a defect itself, or the lender has not.
    """
    lent: list[Example] = []
    for wish in project.params.borrowed(product, generator):
        if wish.defect in own:
            raise InputError(f"params.yaml: zero_shot: {product} has training examples of {wish.defect!r} itself")
        found = [example for example in load_examples(project, wish.lender, "train") if example.defect == wish.defect]
        if not found:
            raise InputError(f"params.yaml: zero_shot: from: {wish.lender} has no training example of {wish.defect!r}")
        lent += found
    return lent
