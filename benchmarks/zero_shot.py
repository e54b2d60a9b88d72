"""`python -m benchmarks.zero_shot --work DIR`: does a defect drawn where it never was help to find it there?

On the demo: one defect of one product is held out completely, from the generator's training and from the segmenter's.
DefectDiffu, fitted on all that is left of both products, draws a defect of the other product in its stead; the
segmenter is trained on the product's other defects with and without these pairs, and tested on the real images of the
defect that was held out, and on good ones. Beside it stands what a plain copy does: the lender's examples pasted.

Pixel AP over three seeds of the segmenter. About a quarter of an hour on one undisturbed thread.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.demo_catalogue import fitted, held_back, train_examples
from defect_core.data.manifest import read_manifest
from defect_core.generators.base import Example, Generator
from defect_core.generators.defectdiffu.config import Config
from defect_core.generators.registry import generator_class, generator_config
from defect_core.segmentation import Sample, SegmenterConfig, load_samples
from defect_core.synthesis import Recipe, synthesize

PAIRS = 48
SEEDS = (0, 1, 2)
SEGMENTER = SegmenterConfig(steps=150, learning_rate=2e-3, val_fraction=0)  # the demo's


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Zero-shot defects on the demo.")
    parser.add_argument("--work", type=Path, required=True, help="keeps the fitted generator and the pairs")
    parser.add_argument("--held-out", default="flange:scratch", help="product:defect that nobody sees")
    parser.add_argument("--lender", default="weave:snag", help="product:defect that is carried over")
    options = parser.parse_args(arguments)
    (product, held_out), (lender, lent) = (name.split(":") for name in (options.held_out, options.lender))
    own, others = train_examples(product, without=(held_out,)), train_examples(lender)
    generator = fitted([*own, *others], options.work / f"without-{product}-{held_out}", Config())
    normals = [example for example in own if example.mask is None]
    offered = [*normals, *(example for example in others if example.defect == lent)]
    copier = generator_class("crop-paste").create(generator_config("crop-paste", {}), None)
    copier.fit(offered, options.work / "copier", 0)
    arms: dict[str, list[Sample]] = {"without": []}
    for name, made in (("defectdiffu", generator), ("crop-paste", copier)):
        folder = options.work / f"{name}-{lender}-{lent}-on-{product}"
        arms[name] = _pairs(made, name, product, offered, folder)
    tested = [_sample(example) for example in held_back(product, held_out)]
    print(f"{product}: {held_out} held out, {lent} of {lender} carried over; pixel AP in %, seeds {SEEDS}")
    for name, synthetic in arms.items():
        scores = 100 * np.array(_scores(own, synthetic, tested))
        listed = ", ".join(f"{score:.1f}" for score in scores)
        print(f"  {name:12} {len(synthetic):3} pairs  {scores.mean():5.1f} ± {scores.std(ddof=1):.1f}  ({listed})")


def _pairs(generator: Generator, name: str, product: str, examples: Sequence[Example], folder: Path) -> list[Sample]:
    """The accepted pairs of a synthetic set of the lent defect, drawn unless they lie there."""
    if not (folder / "summary.json").is_file():
        recipe = Recipe(product, name, 0, PAIRS, 16, 2, min_change=2, min_area=4, model_digest="", min_on_product=0.25)
        synthesize(generator, recipe, examples, folder)
    facts = json.loads((folder / "summary.json").read_text())
    print(f"{name}: {facts['accepted']} of {facts['draws']} draws accepted, rejected: {facts['rejected']}")
    return load_samples(
        [row for row in read_manifest(folder / "manifest.parquet") if row.accepted], folder, SEGMENTER.image_size
    )


def _scores(own: Sequence[Example], synthetic: Sequence[Sample], tested: Sequence[Sample]) -> list[float]:
    from defect_core.segmentation.evaluate import evaluate_segmenter
    from defect_core.segmentation.train import train_segmenter

    real = [_sample(example) for example in own if example.mask is not None]
    good = [_sample(example) for example in own if example.mask is None]
    scores = []
    for seed in SEEDS:
        trained = train_segmenter(real, good, synthetic, SEGMENTER, seed)
        scores.append(evaluate_segmenter(trained.model, tested).scores["pixel_ap"])
        print(f"  seed {seed}, {len(synthetic)} pairs: {100 * scores[-1]:.1f}", flush=True)
    return scores


def _sample(example: Example) -> Sample:
    mask = np.zeros(example.image.shape[:2], bool) if example.mask is None else example.mask
    return Sample(example.image, mask)


if __name__ == "__main__":
    main()
