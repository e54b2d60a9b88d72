"""`python -m benchmarks.strength --work DIR`: is DefectDiffu's strength a dial? Five levels on the demo, 32 seeds each.

32 requests, the demo's products and defects in turn, each drawn at five strengths with everything else equal.
Measured against the normal image: *area*, the share of pixels that changed by more than 8 of 255 grey levels, and
*distance*, the mean absolute change in grey levels. The claim is Spearman's correlation of the level with the mean over
the requests; also printed: the mean over requests of each one's own correlation, and that over all samples at once,
into which the size of the requested regions enters. About three minutes on one undisturbed thread after the fit.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.demo_catalogue import load_or_fit, train_examples
from defect_core.data.demo.render import DEMO_PRODUCTS, demo_defects
from defect_core.data.records import save_png
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.generator import DefectDiffu
from defect_core.report.sheets import contact_sheet
from defect_core.synthesis.batches import SynthesisPlan, make_request

LEVELS = (0.5, 1.0, 1.5, 2.0, 2.5)  # the public code's
SEEDS = 32
VISIBLE = 8  # grey levels
BATCH = 16
SHOWN = 12
BOUND = 0.9


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DefectDiffu's strength on the demo.")
    parser.add_argument(
        "--work", type=Path, required=True, help="keeps the fitted generator and the sheets of pictures"
    )
    parser.add_argument("--generator", type=Path, help="folder of one fitted on the demo before; none fits one")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args(arguments)
    examples = {product: train_examples(product) for product in DEMO_PRODUCTS}
    every = [example for part in examples.values() for example in part]
    generator = load_or_fit(every, options.generator or options.work / "generator", DefectDiffuConfig())
    cells = [(p, d) for d in range(3) for p in DEMO_PRODUCTS if demo_defects(p)[d] in generator.defects]
    requests = [made_request(*cells[i % len(cells)], examples, i) for i in range(options.seeds)]
    area, distance, shown = measure(generator, requests)
    save_png(shown, options.work / "strength.png")
    for part in ("all", *DEMO_PRODUCTS):
        rows = [i for i, request in enumerate(requests) if part in ("all", request.product)]
        print(f"{part}, {len(rows)} requests, strengths {LEVELS}")
        for name, values in (("area in %", 100 * area[rows]), ("distance", distance[rows])):
            levels, each, pooled = correlations(values)
            means = ", ".join(f"{value:.3f}" for value in values.mean(0))
            print(f"  {name:10} {means}; Spearman over the means {levels:.3f} (claimed >= {BOUND}), ", end="")
            print(f"within requests {each:.3f}, over all samples {pooled:.3f}")


def made_request(product: str, number: int, examples: Mapping[str, Sequence[Example]], index: int) -> SampleRequest:
    """A request as `synthesize` makes it, for the product's defect of that number."""
    recipe = SynthesisPlan(product, "defectdiffu", 0, 1, BATCH, 1, 0, 0, "")
    defect = demo_defects(product)[number]
    normals = [example for example in examples[product] if example.mask is None]
    sources = [example for example in examples[product] if example.defect == defect]
    return make_request(recipe, defect, index, normals, sources)[0]


def measure(
    generator: DefectDiffu, requests: list[SampleRequest]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Area (0 to 1) and distance (grey levels) of every request at every level, [requests, levels], and a sheet."""
    area, distance = np.zeros((2, len(requests), len(LEVELS)))
    pictures: list[list[NDArray[np.uint8]]] = [[request.normal_image] for request in requests]
    for column, level in enumerate(LEVELS):
        asked = [replace(request, strength=level) for request in requests]
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            for row, (request, pair) in enumerate(zip(part, generator.sample(part), strict=True), start):
                change = np.abs(pair.image.astype(float) - request.normal_image).mean(-1)
                area[row, column], distance[row, column] = (change > VISIBLE).mean(), change.mean()
                pictures[row].append(pair.image)
    sheet = [picture for row in pictures[:SHOWN] for picture in row]
    return area, distance, contact_sheet(sheet, [None] * len(sheet), 1 + len(LEVELS), 128)


def correlations(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's correlation of the level with the mean, within requests (the mean of it), and over all samples.

    A request whose values are all equal counts 0 in the second.
    """
    levels = np.broadcast_to(LEVELS, values.shape)
    each = [spearmanr(LEVELS, row).statistic if np.ptp(row) > 0 else 0.0 for row in values]
    pooled = spearmanr(levels.ravel(), values.ravel()).statistic
    return float(spearmanr(LEVELS, values.mean(0)).statistic), float(np.mean(each)), float(pooled)


if __name__ == "__main__":
    main()
