"""`python -m benchmarks.zero_shot --work DIR`: do pairs of a zero-shot defect help to find this defect?

A defect type of a product is held out from the training of the generator and of the segmenter. DefectDiffu is trained
on the other images of all products. It generates a defect type of another product on this product. The segmenter is
trained on the product's other defects, with and without these pairs. It is tested on real images of the held-out
defect type and on normal images. The baseline is CropPaste with the same examples.

The products are those of the demo, or those of a project with split images (`--project`). In a project, the held-out
images of both splits are tested. The score is pixel AP over three seeds of the segmenter. One held-out defect type
takes about a quarter of an hour on one idle thread.
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
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample, load_samples, resize_sample
from defect_core.generators.base import Example, Generator
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.registry import generator_class, generator_config
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.synthesis.batches import synthesize
from defect_core.synthesis.requests import SynthesisPlan

PAIRS = 48
SEEDS = (0, 1, 2)
STEPS = 150  # As in the demo.


class Transfer(NamedTuple):
    """The defect type `held` of `product` is held out; `lent` of `lender` is generated on `product` instead."""

    product: str
    held: str
    lender: str
    lent: str

    @classmethod
    def parse(cls, text: str) -> "Transfer":
        """Return the transfer that a command line names as PRODUCT:HELD_OUT=LENDER:DEFECT."""
        names = [part.split(":") for part in text.split("=")]
        if [len(pair) for pair in names] != [2, 2]:
            raise argparse.ArgumentTypeError(f"{text!r}; expected PRODUCT:HELD_OUT=LENDER:DEFECT")
        return cls(*names[0], *names[1])


class Catalogue(NamedTuple):
    """Images of all products.

    Attributes:
        train: training images by product.
        load_test: returns the test images of a product and defect type, with normal ones.
    """

    train: dict[str, list[Example]]
    load_test: Callable[[str, str], list[Example]]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its scores."""
    parser = argparse.ArgumentParser(description="Measure what zero-shot defects are worth.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trained generator and the pairs")
    parser.add_argument(
        "--transfer",
        type=Transfer.parse,
        action="append",
        metavar="PRODUCT:HELD_OUT=LENDER:DEFECT",
        help="may be repeated",
    )
    parser.add_argument("--project", type=Path, help="a project with split images; default: the demo's products")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of the segmenter")
    options = parser.parse_args(arguments)
    transfers = options.transfer or [Transfer.parse("flange:scratch=weave:cut")]
    catalogue = _load_project(Project(options.project)) if options.project else _load_demo()
    held = {(transfer.product, transfer.held) for transfer in transfers}
    train = {
        product: [example for example in examples if (product, example.defect) not in held]
        for product, examples in catalogue.train.items()
    }
    name = "-".join(f"{product}-{defect}" for product, defect in sorted(held))
    generator = load_or_fit(
        [e for part in train.values() for e in part], options.work / f"without-{name}", DefectDiffuConfig()
    )
    config = SegmenterConfig(steps=options.steps, synthetic_fraction=0.5)
    for transfer in transfers:
        test = catalogue.load_test(transfer.product, transfer.held)
        _report(transfer, train, test, generator, config, options.work)


def _report(
    transfer: Transfer,
    train: dict[str, list[Example]],
    test: Sequence[Example],
    generator: Generator,
    config: SegmenterConfig,
    work: Path,
) -> None:
    """Print the scores without synthetic pairs, with those of DefectDiffu and with those of CropPaste."""
    own = train[transfer.product]
    normals = [example for example in own if example.mask is None]
    examples = [*normals, *(example for example in train[transfer.lender] if example.defect == transfer.lent)]
    crop_paste = generator_class("crop-paste").create(generator_config("crop-paste", {}), None)
    crop_paste.fit(examples, work / f"crop-paste-{transfer.product}-{transfer.held}", 0)
    arms: dict[str, list[Sample]] = {"real_only": []}
    for name, trained in (("defectdiffu", generator), ("crop-paste", crop_paste)):
        folder = work / f"{name}-{transfer.lender}-{transfer.lent}-on-{transfer.product}"
        arms[name] = _load_pairs(trained, name, transfer.product, examples, folder, config.image_size)
    defective = sum(example.mask is not None for example in test)
    print(f"{transfer.product}: {transfer.held} held out, {transfer.lent} of {transfer.lender} generated instead")
    print(f"test images: {defective} with defects, {len(test) - defective} normal")
    print(f"pixel AP in %, {config.steps} steps, seeds {SEEDS}")
    samples = [_resize(example, config.image_size) for example in test]
    for name, synthetic in arms.items():
        scores = 100 * np.array(_score_seeds(own, synthetic, samples, config))
        listed = f"{scores.mean():5.1f} ± {scores.std(ddof=1):.1f}  ({', '.join(f'{score:.1f}' for score in scores)})"
        print(f"  {name:12} {len(synthetic):3} pairs  {listed}", flush=True)


def _load_demo() -> Catalogue:
    return Catalogue({product: train_examples(product) for product in DEMO_PRODUCTS}, test_examples)


def _load_project(project: Project) -> Catalogue:
    train = {product: load_examples(project, product, "train") for product in project.params.products}

    def load_test(product: str, defect: str) -> list[Example]:
        test = load_examples(project, product, "test")
        return [e for e in (*train[product], *test) if e.defect == defect] + [e for e in test if e.mask is None]

    return Catalogue(train, load_test)


def _load_pairs(
    generator: Generator, name: str, product: str, examples: Sequence[Example], folder: Path, side: int
) -> list[Sample]:
    """Return the accepted pairs in `folder`, which are generated if there are none."""
    if not (folder / "summary.json").is_file():
        plan = SynthesisPlan(product=product, generator=name, base_seed=0, per_defect=PAIRS)
        synthesize(generator, plan, examples, folder)
    summary = json.loads((folder / "summary.json").read_text())
    print(f"{name}: {summary['accepted']} of {summary['attempts']} accepted, rejected: {summary['rejected']}")
    return load_samples([row for row in manifest_rows(folder / "manifest.parquet") if row.accepted], folder, side)


def _score_seeds(
    own: Sequence[Example], synthetic: Sequence[Sample], test: Sequence[Sample], config: SegmenterConfig
) -> list[float]:
    """Return the pixel AP of one segmenter per seed."""
    from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
    from defect_core.evaluation.segmentation.train import train_segmenter

    real = [_resize(example, config.image_size) for example in own if example.mask is not None]
    normal = [_resize(example, config.image_size) for example in own if example.mask is None]
    scores = []
    for seed in SEEDS:
        trained = train_segmenter(real, normal, synthetic, config, seed)
        scores.append(evaluate_segmenter(trained.model, test).scores["pixel_ap"])
        print(f"  seed {seed}, {len(synthetic)} pairs: {100 * scores[-1]:.1f}", flush=True)
    return scores


def _resize(example: Example, side: int) -> Sample:
    return resize_sample(example.image, example.mask, side)


if __name__ == "__main__":
    main()
