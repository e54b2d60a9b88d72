"""synthesize: image-mask pairs with their manifest, into `data/synthetic/<product>/<generator>`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.base import Example, Generator
from defect_core.generators.registry import generator_class, weights_folder
from defect_core.project.loading import load_examples, open_backbone
from defect_core.project.paths import Project, folder_digest
from defect_core.synthesis.batches import SynthesisPlan, regeneration_seed, synthesize


@dataclass(frozen=True)
class SynthesisJob:
    """What a set is made from: the recipe, the training images, and the folder of the fitted generator."""

    recipe: SynthesisPlan
    examples: list[Example]
    weights: Path

    @property
    def key(self) -> dict[str, Any]:
        """What decides the set; work under another key is no use."""
        return {
            "recipe": self.recipe.__dict__,
            "examples": [[example.product, example.name] for example in self.examples],
        }


def run(project: Project, product: str, generator: str) -> None:
    order = load_synthesis_job(project, product, generator)
    fitted = open_generator(project, order)
    with project.building(output_folder(product, generator), order.key) as work:
        synthesize(fitted, order.recipe, order.examples, work)


def output_folder(product: str, generator: str) -> str:
    """Where a set lies in a project."""
    return f"data/synthetic/{product}/{generator}"


def load_synthesis_job(project: Project, product: str, generator: str) -> SynthesisJob:
    """What params.yaml and the files upstream ask for."""
    params = project.params
    weights = project.path(weights_folder(product, generator))
    settings = params.synthesize
    examples = examples_for(project, product, generator)
    real = Counter(example.defect for example in examples if example.mask is not None)
    fixed = isinstance(settings.per_defect, int)
    recipe = SynthesisPlan(
        product=product,
        generator=generator,
        base_seed=regeneration_seed(params.seed, params.draw(product, generator)),
        per_defect=settings.per_defect if fixed else {name: settings.wanted(real[name]) for name in sorted(real)},
        batch_size=settings.batch_size,
        max_draws=settings.max_draws,
        min_change=settings.min_change,
        min_area=settings.min_area,
        max_change_outside=settings.max_change_outside,
        min_on_product=settings.min_on_product,
        min_distance=settings.min_distance,
        model_digest=folder_digest(weights),
    )
    return SynthesisJob(recipe, examples, weights)


def open_generator(project: Project, order: SynthesisJob) -> Generator:
    """The fitted generator of an order, on this machine's accelerator."""
    product, name = order.recipe.product, order.recipe.generator
    return generator_class(name).load(order.weights, open_backbone(project, product, name))


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
