"""score: a synthetic set against the real defects of the test side, into `metrics/score/`."""

import json
from pathlib import Path
from typing import Any

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image
from defect_core.errors import InputError
from defect_core.examples import load_examples
from defect_core.metrics.protocol import score_sets
from defect_core.project import Project, write_json

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def run(project: Project, product: str, generator: str) -> None:
    settings = project.params.score
    train = [example for example in load_examples(project, product, "train") if example.mask is not None]
    folder = project.path(f"data/synthetic/{product}/{generator}")
    rows = [row for row in read_manifest(folder / "manifest.parquet") if row.accepted]
    if not rows:
        raise InputError(f"data/synthetic/{product}/{generator}: holds no accepted pair; nothing to score")
    generated: dict[str, list] = {}
    for row in rows:
        generated.setdefault(row.defect, []).append(load_image(folder / row.image))
    result = score_sets(
        _by_defect(train),
        generated,
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


def _by_defect(examples: list) -> dict[str, list]:
    grouped: dict[str, list] = {}
    for example in examples:
        grouped.setdefault(example.defect, []).append(example.image)
    return grouped


def _read_folder(folder: Path) -> list:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected a folder with images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise InputError(f"{folder}: holds {len(paths)} images; expected at least two")
    return [load_image(path) for path in paths]
