"""Two looks at a synthetic set: what comes nearest to a training image, and how large masks are beside real ones."""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.data.manifest import ManifestRow, read_manifest
from defect_core.data.records import load_image, load_mask
from defect_core.project.loading import split_records_of
from defect_core.project.paths import Project

PER_DEFECT = 2


class NearestPairs(NamedTuple):
    """`made[i]` comes nearest to the training image `real[i]`; both uint8 [H, W, 3]. `ratios` are in units of the
    median distance between training images, None where there is no unit: near 0 is a copy."""

    made: list[NDArray[np.uint8]]
    real: list[NDArray[np.uint8]]
    ratios: list[float | None]


def nearest_pairs(project: Project, product: str, generator: str) -> NearestPairs:
    """The generated images of each defect whose features come nearest to those of a training image, nearest first."""
    scores = json.loads(project.path(f"metrics/score/{product}/{generator}.json").read_text(encoding="utf-8"))
    folders = project.path(f"data/synthetic/{product}/{generator}"), project.path(f"data/raw/{product}")
    found = NearestPairs([], [], [])
    for _, spaces in sorted(scores.get("nearest", {}).items()):
        for pair in spaces.get("features", [])[:PER_DEFECT]:
            made, real = folders[0] / str(pair["generated"]), folders[1] / str(pair["real"])
            if made.is_file() and real.is_file():
                found.made.append(load_image(made))
                found.real.append(load_image(real))
                found.ratios.append(pair.get("ratio"))
    return found


def mask_areas(project: Project, product: str, generator: str) -> list[dict[str, Any]]:
    """By defect, the smallest, median and largest part of the image that masks cover, 0 to 1: `made` over the accepted
    pairs, `real` over the training images; None where there are none."""
    synthetic, raw = project.path(f"data/synthetic/{product}/{generator}"), project.path(f"data/raw/{product}")
    real: dict[str, list[float]] = {}
    for record in split_records_of(project, product, "train"):
        if record.mask is not None:
            real.setdefault(record.defect, []).append(float(load_mask(raw / record.mask).mean()))
    made: dict[str, list[float]] = {}
    for row in read_manifest(synthetic / "manifest.parquet"):
        if row.accepted:
            made.setdefault(row.defect, []).append(_share(row, synthetic))
    return [
        {"defect": defect, "made": _range(made.get(defect)), "real": _range(real.get(defect))}
        for defect in sorted(made.keys() | real.keys())
    ]


def _share(row: ManifestRow, folder: Any) -> float:
    from PIL import Image

    with Image.open(folder / str(row.image)) as image:  # reads the size only
        return row.mask_area / (image.width * image.height)


def _range(values: list[float] | None) -> tuple[float, float, float] | None:
    return (min(values), float(np.median(values)), max(values)) if values else None
