"""What a fitted generator of a project learned, in numbers and on a sheet.

    python -m benchmarks.methods weave seas [--count 8] [--sheet FILE]

Run it in a project whose stage `finetune` has run for this product and generator. It prints how the losses fell, how
the agreement of attention and masks rose where the method measures it, and, per defect, what `count` drawn pairs
changed: mean absolute change in grey levels inside and outside the returned mask, the mask's area beside that of the
requested one, and its IoU with the changed region (pixels that moved by more than 12 grey levels). The sheet shows
per defect two real examples, then normal images, what was drawn into them, and the masks (red the returned one, green
the requested one, yellow both), all in windows around the requested mask.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from defect_core.generators.base import Example, SampleRequest, SyntheticPair
from defect_core.generators.canvas import choose_window, crop_image, crop_mask
from defect_core.generators.registry import generator_class, weights_folder
from defect_core.project.loading import load_examples, open_backbone
from defect_core.project.paths import Project
from defect_core.synthesis.batches import SynthesisPlan, make_request

MOVED = 12  # grey levels
_SIDE = 112
_VIEW = ("local", 2.5, 48)


def main(
    product: str,
    generator: str,
    count: Annotated[int, typer.Option(min=1)] = 8,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    project = Project.find()
    folder = project.path(weights_folder(product, generator))
    print_training(folder / "training.json")
    fitted = generator_class(generator).load(folder, open_backbone(project, product, generator))
    examples = load_examples(project, product, "train")
    normals = [one for one in examples if one.mask is None]
    recipe = SynthesisPlan(product, generator, project.params.seed, count, count, 1, 0, 0, "")
    rows = []
    for defect in sorted({one.defect for one in examples if one.mask is not None}):
        sources = [one for one in examples if one.defect == defect]
        requests = [make_request(recipe, defect, index, normals, sources)[0] for index in range(count)]
        pairs = list(fitted.sample(requests))
        figures = np.array([measure(*both) for both in zip(requests, pairs, strict=True)]).mean(0)
        print(
            "{}: change {:.1f} inside, {:.2f} outside; mask {:.0f} px, requested {:.0f} px; "
            "IoU with what changed {:.2f}".format(defect, *figures)
        )
        rows += draw_rows(sources[:2], requests, pairs)
    if sheet is not None:
        Image.fromarray(np.concatenate(rows)).save(sheet)


def print_training(file: Path) -> None:
    """First and last tenth of every recorded loss; agreements as they are, before and after."""
    for name, values in json.loads(file.read_text()).items() if file.is_file() else ():
        if len(values) > 2:
            tenth = max(1, len(values) // 10)
            values = [np.mean(values[:tenth]), np.mean(values[-tenth:])]
        if values:
            print(f"{name}: " + " -> ".join(f"{value:.3f}" for value in values))


def measure(request: SampleRequest, pair: SyntheticPair) -> tuple[float, float, float, float, float]:
    """Change inside and outside the mask, areas of the returned and the requested mask, IoU with what changed."""
    change = np.abs(pair.image.astype(float) - request.normal_image).mean(-1)
    moved, mask = change > MOVED, pair.mask
    iou = (moved & mask).sum() / max(1, (moved | mask).sum())
    return change[mask].mean(), change[~mask].mean(), mask.sum(), request.mask.sum(), iou


def draw_rows(
    real: list[Example], requests: list[SampleRequest], pairs: list[SyntheticPair]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of tiles: normal images, drawn images, masks; the real examples stand first in each."""
    columns = []
    for one in real:
        window = choose_window(one.mask, *_VIEW)
        seen = _tile(crop_image(one.image, window, _SIDE))
        columns.append((seen, seen, _tile(np.repeat(255 * crop_mask(one.mask, window, _SIDE)[..., None], 3, 2))))
    for request, pair in zip(requests, pairs, strict=True):
        window = choose_window(request.mask, *_VIEW)
        found, asked = (255 * crop_mask(mask, window, _SIDE) for mask in (pair.mask, request.mask))
        masks = np.stack([found, asked, np.zeros_like(found)], -1)
        images = (crop_image(image, window, _SIDE) for image in (request.normal_image, pair.image))
        columns.append((*map(_tile, images), _tile(masks)))
    return tuple(np.concatenate(row, 1) for row in zip(*columns, strict=True))


def _tile(pixels: np.ndarray) -> np.ndarray:
    return np.pad(pixels.astype(np.uint8), ((1, 1), (1, 1), (0, 0)))


if __name__ == "__main__":
    typer.run(main)
