"""`python -m benchmarks.zero_shot --work DIR`: does a defect drawn where it never was help to find it there?

Defects of a product are held out completely, from the generator's training and from the segmenter's. DefectDiffu,
fitted on all that is left of all products, draws a defect of another product in their stead; the segmenter is trained
on the product's other defects with and without these pairs, and tested on the real images of the defect that was held
out, and on good ones. Beside it stands what a plain copy does: the lender's examples pasted.

On the demo, or on the products of a project that has been ingested and split (`--project`), where the held-out images
of both sides of the split are tested. Pixel AP over three seeds of the segmenter. About a quarter of an hour per
carried defect on one undisturbed thread.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.demo_catalogue import load_or_fit, test_examples, train_examples
from defect_core.data.demo.render import DEMO_PRODUCTS
from defect_core.data.manifest import manifest_rows
from defect_core.evaluation.segmentation import Sample, SegmenterConfig, load_samples
from defect_core.evaluation.segmentation.data import resize_sample
from defect_core.generators.base import Example, Generator
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.registry import generator_class, generator_config
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.synthesis.batches import SynthesisPlan, synthesize

PAIRS = 48
SEEDS = (0, 1, 2)
STEPS = 150  # the demo's


class Carry(NamedTuple):
    """The defect `held` of `product` is held out, and `lent` of `lender` drawn there."""

    product: str
    held: str
    lender: str
    lent: str

    @classmethod
    def parse(cls, text: str) -> "Carry":
        names = [part.split(":") for part in text.split("=")]
        if [len(pair) for pair in names] != [2, 2]:
            raise argparse.ArgumentTypeError(f"{text!r}; expected PRODUCT:HELD_OUT=LENDER:DEFECT")
        return cls(*names[0], *names[1])


class Catalogue(NamedTuple):
    """All that trains, by product, and what tests a defect of a product: its images and good ones."""

    train: dict[str, list[Example]]
    tested: Callable[[str, str], list[Example]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Zero-shot defects.")
    parser.add_argument("--work", type=Path, required=True, help="keeps the fitted generator and the pairs")
    parser.add_argument(
        "--carry", type=Carry.parse, action="append", metavar="PRODUCT:HELD_OUT=LENDER:DEFECT", help="may be repeated"
    )
    parser.add_argument("--project", type=Path, help="a project whose products are split; none: the demo's")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the segmenter")
    options = parser.parse_args(arguments)
    carries = options.carry or [Carry.parse("flange:scratch=weave:cut")]
    catalogue = _of_project(Project(options.project)) if options.project else _of_demo()
    held = {(carry.product, carry.held) for carry in carries}
    train = {
        product: [example for example in examples if (product, example.defect) not in held]
        for product, examples in catalogue.train.items()
    }
    name = "-".join(f"{product}-{defect}" for product, defect in sorted(held))
    generator = load_or_fit(
        [e for part in train.values() for e in part], options.work / f"without-{name}", DefectDiffuConfig()
    )
    config = SegmenterConfig(steps=options.steps, learning_rate=2e-3, validation_fraction=0)
    for carry in carries:
        _report(carry, train, catalogue.tested(carry.product, carry.held), generator, config, options.work)


def _report(
    carry: Carry,
    train: dict[str, list[Example]],
    tested: Sequence[Example],
    generator: Generator,
    config: SegmenterConfig,
    work: Path,
) -> None:
    own = train[carry.product]
    normals = [example for example in own if example.mask is None]
    offered = [*normals, *(example for example in train[carry.lender] if example.defect == carry.lent)]
    copier = generator_class("crop-paste").create(generator_config("crop-paste", {}), None)
    copier.fit(offered, work / f"copier-{carry.product}-{carry.held}", 0)
    arms: dict[str, list[Sample]] = {"without": []}
    for name, made in (("defectdiffu", generator), ("crop-paste", copier)):
        folder = work / f"{name}-{carry.lender}-{carry.lent}-on-{carry.product}"
        arms[name] = _pairs(made, name, carry.product, offered, folder, config.image_size)
    defective = sum(example.mask is not None for example in tested)
    print(
        f"{carry.product}: {carry.held} held out, {carry.lent} of {carry.lender} carried over; {defective} defects and"
    )
    print(f"{len(tested) - defective} good images test; pixel AP in %, {config.steps} steps, seeds {SEEDS}")
    samples = [_sample(example, config.image_size) for example in tested]
    for name, synthetic in arms.items():
        scores = 100 * np.array(_scores(own, synthetic, samples, config))
        listed = f"{scores.mean():5.1f} ± {scores.std(ddof=1):.1f}  ({', '.join(f'{score:.1f}' for score in scores)})"
        print(f"  {name:12} {len(synthetic):3} pairs  {listed}", flush=True)


def _of_demo() -> Catalogue:
    return Catalogue({product: train_examples(product) for product in DEMO_PRODUCTS}, test_examples)


def _of_project(project: Project) -> Catalogue:
    train = {product: load_examples(project, product, "train") for product in project.params.products}

    def tested(product: str, defect: str) -> list[Example]:
        others = load_examples(project, product, "test")
        return [e for e in (*train[product], *others) if e.defect == defect] + [e for e in others if e.mask is None]

    return Catalogue(train, tested)


def _pairs(
    generator: Generator, name: str, product: str, examples: Sequence[Example], folder: Path, side: int
) -> list[Sample]:
    """The accepted pairs of a synthetic set of the lent defect, drawn unless they lie there."""
    if not (folder / "summary.json").is_file():
        recipe = SynthesisPlan(
            product, name, 0, PAIRS, 16, 2, min_change=2, min_area=4, model_digest="", min_on_product=0.25
        )
        synthesize(generator, recipe, examples, folder)
    facts = json.loads((folder / "summary.json").read_text())
    print(f"{name}: {facts['accepted']} of {facts['draws']} draws accepted, rejected: {facts['rejected']}")
    return load_samples([row for row in manifest_rows(folder / "manifest.parquet") if row.accepted], folder, side)


def _scores(
    own: Sequence[Example], synthetic: Sequence[Sample], tested: Sequence[Sample], config: SegmenterConfig
) -> list[float]:
    from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
    from defect_core.evaluation.segmentation.train import train_segmenter

    real = [_sample(example, config.image_size) for example in own if example.mask is not None]
    good = [_sample(example, config.image_size) for example in own if example.mask is None]
    scores = []
    for seed in SEEDS:
        trained = train_segmenter(real, good, synthetic, config, seed)
        scores.append(evaluate_segmenter(trained.model, tested).scores["pixel_ap"])
        print(f"  seed {seed}, {len(synthetic)} pairs: {100 * scores[-1]:.1f}", flush=True)
    return scores


def _sample(example: Example, side: int) -> Sample:
    return resize_sample(example.image, example.mask, side)


if __name__ == "__main__":
    main()
