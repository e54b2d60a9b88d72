"""What a trained generator of a project learned, in numbers and on a contact sheet.

    python -m benchmarks.methods weave seas [--count 8] [--sheet FILE]

Run it in a project whose stage `finetune` has run for this product and generator. It prints the first and last values
of everything that the training recorded. For each defect type it generates `count` pairs and prints means over them:

- the absolute change in grey levels inside and outside the returned mask;
- the areas of the returned and the requested mask;
- the IoU of the returned mask with the changed pixels (by more than 12 grey levels).

The sheet has three rows per defect type: normal images, generated images, and masks (red: returned, green: requested,
yellow: both). Two real examples come first in each row. All are windows around the requested mask.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from defect_core.generators.base import Example, SampleRequest, SyntheticPair
from defect_core.generators.canvas import choose_window, crop_image, crop_mask
from defect_core.generators.registry import generator_class, generator_folder
from defect_core.project.backbones import open_backbone
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project
from defect_core.synthesis.requests import SynthesisPlan, make_request

MIN_CHANGE = 12  # Grey levels of 255.
REAL_EXAMPLES = 2
SIDE = 112
CONTEXT, MIN_SIDE = 2.5, 48  # Of the windows, see `choose_window`.


def main(
    product: str,
    generator: str,
    count: Annotated[int, typer.Option(min=1)] = 8,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print the numbers and save the sheet."""
    project = Project.find()
    folder = project.path(generator_folder(product, generator))
    print_training(folder / "training.json")
    trained = generator_class(generator).load(folder, open_backbone(project, product, generator))
    examples = load_examples(project, product, "train")
    normals = [example for example in examples if example.mask is None]
    plan = SynthesisPlan(
        product=product, generator=generator, base_seed=project.params.seed, per_defect=count, batch_size=count
    )
    rows = []
    for defect in sorted({example.defect for example in examples if example.mask is not None}):
        sources = [example for example in examples if example.defect == defect]
        requests = [make_request(plan, defect, index, normals, sources)[0] for index in range(count)]
        pairs = list(trained.sample(requests))
        means = np.array([measure_changes(*both) for both in zip(requests, pairs, strict=True)]).mean(0)
        print(
            "{}: change {:.1f} inside, {:.2f} outside; mask {:.0f} px, requested {:.0f} px; "
            "IoU with the changed pixels {:.2f}".format(defect, *means)
        )
        rows += sheet_rows(sources[:REAL_EXAMPLES], requests, pairs)
    if sheet is not None:
        Image.fromarray(np.concatenate(rows)).save(sheet)


def print_training(file: Path) -> None:
    """Print the mean of the first and of the last tenth of every recorded value; all values if there are only two."""
    for name, values in json.loads(file.read_text()).items() if file.is_file() else ():
        if len(values) > 2:
            tenth = max(1, len(values) // 10)
            values = [np.mean(values[:tenth]), np.mean(values[-tenth:])]
        if values:
            print(f"{name}: " + " -> ".join(f"{value:.3f}" for value in values))


def measure_changes(request: SampleRequest, pair: SyntheticPair) -> tuple[float, float, float, float, float]:
    """Return change inside and outside the mask, areas of the returned and the requested mask, and the IoU."""
    change = np.abs(pair.image.astype(float) - request.normal_image).mean(-1)
    changed, mask = change > MIN_CHANGE, pair.mask
    iou = (changed & mask).sum() / max(1, (changed | mask).sum())
    return change[mask].mean(), change[~mask].mean(), mask.sum(), request.mask.sum(), iou


def sheet_rows(
    real: list[Example], requests: list[SampleRequest], pairs: list[SyntheticPair]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three rows of tiles: normal images, generated images, masks; the real examples come first in each."""
    columns = []
    for example in real:
        window = choose_window(example.mask, "local", CONTEXT, MIN_SIDE)
        tile = _tile(crop_image(example.image, window, SIDE))
        mask = 255 * crop_mask(example.mask, window, SIDE)
        columns.append((tile, tile, _tile(np.repeat(mask[..., None], 3, 2))))
    for request, pair in zip(requests, pairs, strict=True):
        window = choose_window(request.mask, "local", CONTEXT, MIN_SIDE)
        returned, requested = (255 * crop_mask(mask, window, SIDE) for mask in (pair.mask, request.mask))
        masks = np.stack([returned, requested, np.zeros_like(returned)], -1)
        images = (crop_image(image, window, SIDE) for image in (request.normal_image, pair.image))
        columns.append((*map(_tile, images), _tile(masks)))
    return tuple(np.concatenate(row, 1) for row in zip(*columns, strict=True))


def _tile(pixels: np.ndarray) -> np.ndarray:
    return np.pad(pixels.astype(np.uint8), ((1, 1), (1, 1), (0, 0)))


if __name__ == "__main__":
    typer.run(main)
