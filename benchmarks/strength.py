"""`python -m benchmarks.strength --work DIR`: does DefectDiffu's strength control how strong a defect is?

32 requests for the products and defect types of the demo are sampled at five strengths, with everything else equal.
Two quantities are measured against the normal image. *Area* is the fraction of pixels that changed by more than 8 of
255 grey levels. *Distance* is the mean absolute change in grey levels.

The main result is Spearman's correlation of the strength with the mean over the requests. Two more are printed: the
mean of each request's own correlation, and the correlation over all samples, which also depends on the sizes of the
masks. It takes about three minutes on one idle thread after the training.
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
from defect_core.synthesis.requests import SynthesisPlan, make_request

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5)  # Those of the public code.
REQUESTS = 32
VISIBLE_CHANGE = 8  # Grey levels of 255.
BATCH = 16
SHEET_ROWS = 12
MIN_CORRELATION = 0.9


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its correlations."""
    parser = argparse.ArgumentParser(description="Measure DefectDiffu's strength on the demo.")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the trained generator and the contact sheet"
    )
    parser.add_argument("--generator", type=Path, help="folder of a generator trained on the demo; default: train one")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args(arguments)
    examples = {product: train_examples(product) for product in DEMO_PRODUCTS}
    all_examples = [example for part in examples.values() for example in part]
    generator = load_or_fit(all_examples, options.generator or options.work / "generator", DefectDiffuConfig())
    cells = [(p, d) for d in range(3) for p in DEMO_PRODUCTS if demo_defects(p)[d] in generator.defects]
    requests = [request_sample(*cells[i % len(cells)], examples, i) for i in range(options.requests)]
    area, distance, sheet = measure_changes(generator, requests)
    save_png(sheet, options.work / "strength.png")
    for part in ("all", *DEMO_PRODUCTS):
        rows = [i for i, request in enumerate(requests) if part in ("all", request.product)]
        print(f"{part}, {len(rows)} requests, strengths {STRENGTHS}")
        for name, values in (("area in %", 100 * area[rows]), ("distance", distance[rows])):
            of_mean, within, pooled = correlate(values)
            means = ", ".join(f"{value:.3f}" for value in values.mean(0))
            print(f"  {name:10} {means}; Spearman of the means {of_mean:.3f} (expected >= {MIN_CORRELATION}), ", end="")
            print(f"within requests {within:.3f}, over all samples {pooled:.3f}")


def request_sample(product: str, number: int, examples: Mapping[str, Sequence[Example]], index: int) -> SampleRequest:
    """Return a request as `synthesize` makes it, for the product's defect type with this number."""
    plan = SynthesisPlan(product=product, generator="defectdiffu", base_seed=0, per_defect=1, batch_size=BATCH)
    defect = demo_defects(product)[number]
    normals = [example for example in examples[product] if example.mask is None]
    sources = [example for example in examples[product] if example.defect == defect]
    return make_request(plan, defect, index, normals, sources)[0]


def measure_changes(
    generator: DefectDiffu, requests: list[SampleRequest]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Return area (0 to 1) and distance (grey levels), `[requests, strengths]` each, and a contact sheet."""
    area, distance = np.zeros((2, len(requests), len(STRENGTHS)))
    images: list[list[NDArray[np.uint8]]] = [[request.normal_image] for request in requests]
    for column, strength in enumerate(STRENGTHS):
        changed = [replace(request, strength=strength) for request in requests]
        for start in range(0, len(changed), BATCH):
            part = changed[start : start + BATCH]
            for row, (request, pair) in enumerate(zip(part, generator.sample(part), strict=True), start):
                change = np.abs(pair.image.astype(float) - request.normal_image).mean(-1)
                area[row, column], distance[row, column] = (change > VISIBLE_CHANGE).mean(), change.mean()
                images[row].append(pair.image)
    sheet = [image for row in images[:SHEET_ROWS] for image in row]
    return area, distance, contact_sheet(sheet, [None] * len(sheet), 1 + len(STRENGTHS), 128)


def correlate(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return Spearman's correlation of the strength with the mean, its mean within requests, and over all samples.

    A request whose values are all equal counts as 0 in the second one.
    """
    strengths = np.broadcast_to(STRENGTHS, values.shape)
    within = [spearmanr(STRENGTHS, row).statistic if np.ptp(row) > 0 else 0.0 for row in values]
    pooled = spearmanr(strengths.ravel(), values.ravel()).statistic
    return float(spearmanr(STRENGTHS, values.mean(0)).statistic), float(np.mean(within)), float(pooled)


if __name__ == "__main__":
    main()
