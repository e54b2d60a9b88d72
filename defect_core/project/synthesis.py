"""What a synthetic set of a project is made from: the plan, the examples and the trained generator."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from defect_core.data.files import folder_digest
from defect_core.data.placement_settings import ANY, PlacementRule, rules_of
from defect_core.data.regions import ROI, regions_by_defect
from defect_core.errors import InputError
from defect_core.generators.base import Example, Generator, Mask
from defect_core.generators.registry import generator_class
from defect_core.project.backbones import open_backbone
from defect_core.project.examples import load_examples, split_records_of
from defect_core.project.paths import Project
from defect_core.synthesis.requests import SynthesisPlan, regeneration_seed


@dataclass(frozen=True)
class SynthesisJob:
    """What a synthetic set is made from.

    Attributes:
        plan: how many pairs, with which filter and seed.
        examples: training images of the product, then those that other products lend it.
    """

    plan: SynthesisPlan
    examples: list[Example]

    @property
    def key(self) -> dict[str, Any]:
        """What decides the set; unfinished work under another key cannot be continued."""
        return {
            "plan": self.plan.model_dump(),
            "examples": [[example.product, example.name] for example in self.examples],
        }


def load_synthesis_job(project: Project, product: str, generator: str) -> SynthesisJob:
    """Return what params.yaml and the outputs of earlier stages ask for.

    Raises:
        InputError: a zero-shot defect that the product has itself, or that its lender lacks, a rule of `placement`
            for an unknown defect type, or a region that does not fit.
    """
    params = project.params
    weights = project.path(project.params.generator_folder(product, generator))
    settings = params.synthesize
    examples = load_examples(project, product, "train")
    examples += _borrowed_examples(project, product, generator, {example.defect for example in examples})
    real = Counter(example.defect for example in examples if example.mask is not None)
    rules = rules_of(params.placement, product)
    _check_rules(rules, product, set(real))
    plan = SynthesisPlan(
        product=product,
        generator=generator,
        base_seed=regeneration_seed(params.seed, params.regeneration(product, generator)),
        per_defect=settings.per_defect
        if isinstance(settings.per_defect, int)
        else {name: settings.target_count(real[name]) for name in sorted(real)},
        batch_size=settings.batch_size,
        max_attempts=settings.max_attempts,
        min_change=settings.min_change,
        min_area=settings.min_area,
        max_change_outside=settings.max_change_outside,
        min_on_product=settings.min_on_product,
        min_distance=settings.min_distance,
        model_digest=folder_digest(weights),
        placement=rules,
    )
    return SynthesisJob(plan, _with_regions(project, product, examples, rules))


def _check_rules(rules: Mapping[str, PlacementRule], product: str, defects: set[str]) -> None:
    for defect in rules:
        if defect != ANY and defect not in defects:
            raise InputError(
                f"params.yaml: placement.{product}.{defect}: no such defect type; "
                f"expected one of {', '.join(sorted(defects))}"
            )


def _with_regions(
    project: Project, product: str, examples: list[Example], rules: Mapping[str, PlacementRule]
) -> list[Example]:
    """Return the examples, the normal images of the product with the regions where defects may be placed."""
    raw = project.path(f"data/raw/{product}")
    if not (raw / ROI).is_dir() and not any(rule.region for rule in rules.values()):
        return examples
    records = {record.image: record for record in split_records_of(project, product, "train")}
    shared: dict[tuple[str, bytes], Mask] = {}  # images with the same region share one array
    result = []
    for example in examples:
        regions: dict[str, Mask] = {}
        if example.mask is None and example.product == product:
            regions = regions_by_defect(raw, records[example.name], rules)
        for defect, region in regions.items():
            regions[defect] = shared.setdefault((str(region.shape), np.packbits(region).tobytes()), region)
        result.append(replace(example, regions=regions) if regions else example)
    return result


def load_project_generator(project: Project, product: str, name: str) -> Generator:
    """Return a generator that the stage `finetune` trained on a product.

    Raises:
        InputError: the generator was not trained, or was trained on another backbone.
    """
    weights = project.path(project.params.generator_folder(product, name))
    return generator_class(name).load(weights, open_backbone(project, product, name))


def _borrowed_examples(project: Project, product: str, generator: str, own: set[str]) -> list[Example]:
    """Return training examples of other products, of the defects that `zero_shot` asks for on this one."""
    borrowed: list[Example] = []
    for entry in project.params.borrowed_defects(product, generator):
        if entry.defect in own:
            raise InputError(f"params.yaml: zero_shot: {product} has training examples of {entry.defect!r} itself")
        examples = [e for e in load_examples(project, entry.lender, "train") if e.defect == entry.defect]
        if not examples:
            raise InputError(
                f"params.yaml: zero_shot: from: {entry.lender} has no training example of {entry.defect!r}"
            )
        borrowed += examples
    return borrowed
