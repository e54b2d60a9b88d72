"""score: a synthetic set against real defects, into `metrics/score/`.

Distances between distributions are to the test side, which no generator has seen; variety around real examples and
copies of them are about the training side, which it has.
"""

import json
from pathlib import Path
from typing import Any

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.examples import load_examples
from defect_core.generators.base import Example, Image, Mask
from defect_core.metrics.protocol import score_sets
from defect_core.project import Project, write_json

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def run(project: Project, product: str, generator: str) -> None:
    settings = project.params.score
    train, test = (_by_defect(load_examples(project, product, side)) for side in ("train", "test"))
    folder = project.path(f"data/synthetic/{product}/{generator}")
    made: dict[str, list[Example]] = {}
    for row in read_manifest(folder / "manifest.parquet"):
        if row.accepted:
            pair = Example(product, row.defect, load_image(folder / row.image), load_mask(folder / row.mask), row.image)
            made.setdefault(row.defect, []).append(pair)
    if not made:
        raise InputError(f"data/synthetic/{product}/{generator}: holds no accepted pair; nothing to score")
    result = score_sets(
        _images(train),
        _images(made),
        real_masks=_masks(train),
        generated_masks=_masks(made),
        unseen=_images(test),
        image_size=settings.image_size,
        seed=project.params.seed,
    )
    result["product"], result["generator"] = product, generator
    result["acceptance"] = json.loads((folder / "summary.json").read_text())
    write_json(project.path(f"metrics/score/{product}/{generator}.json"), result)


def score_folders(real: Path, generated: Path, image_size: int, seed: int) -> dict[str, Any]:
    """Score all images below one folder against all below another, pooled.

    Raises:
        InputError: a folder is missing or holds fewer than two images.
    """
    return score_sets({"all": _read_folder(real)}, {"all": _read_folder(generated)}, image_size=image_size, seed=seed)


def _by_defect(examples: list[Example]) -> dict[str, list[Example]]:
    grouped: dict[str, list[Example]] = {}
    for example in examples:
        if example.mask is not None:
            grouped.setdefault(example.defect, []).append(example)
    return grouped


def _images(grouped: dict[str, list[Example]]) -> dict[str, list[Image]]:
    return {defect: [example.image for example in examples] for defect, examples in grouped.items()}


def _masks(grouped: dict[str, list[Example]]) -> dict[str, list[Mask]]:
    return {defect: [example.mask for example in examples] for defect, examples in grouped.items()}


def _read_folder(folder: Path) -> list[Image]:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected a folder with images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise InputError(f"{folder}: holds {len(paths)} images; expected at least two")
    return [load_image(path) for path in paths]
