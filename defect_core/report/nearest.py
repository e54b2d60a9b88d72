"""Checks of a synthetic set for the report: its nearest training images, and its mask sizes beside real ones."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.data.guarded import read_json
from defect_core.data.images import open_image
from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.records import load_image, load_mask
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder

PAIRS_PER_DEFECT = 2


class NearestPairs(NamedTuple):
    """Generated images, each with the training image whose features are nearest.

    Attributes:
        generated: uint8 [H, W, 3].
        real: uint8 [H, W, 3], the training image of each generated one.
        ratios: feature distances in units of the median distance between training images. 0 is a copy; None where the
            median is undefined.
    """

    generated: list[NDArray[np.uint8]]
    real: list[NDArray[np.uint8]]
    ratios: list[float | None]


class MaskAreas(NamedTuple):
    """Mask areas of one defect as (minimum, median, maximum) fractions of the image, 0 to 1; None without masks.

    Attributes:
        defect: name of the defect type.
        synthetic: over the accepted pairs.
        real: over the training images.
    """

    defect: str
    synthetic: tuple[float, float, float] | None
    real: tuple[float, float, float] | None


def nearest_pairs(project: Project, product: str, generator: str) -> NearestPairs:
    """Return the two pairs of each defect with the smallest feature distance, the nearest first."""
    scores = read_json(project.path(f"metrics/score/{product}/{generator}.json"))
    synthetic, raw = project.path(synthetic_folder(product, generator)), project.path(f"data/raw/{product}")
    pairs = NearestPairs([], [], [])
    for _, spaces in sorted(scores.get("nearest", {}).items()):
        for pair in spaces.get("features", [])[:PAIRS_PER_DEFECT]:
            generated, real = synthetic / str(pair["generated"]), raw / str(pair["real"])
            if generated.is_file() and real.is_file():
                pairs.generated.append(load_image(generated))
                pairs.real.append(load_image(real))
                pairs.ratios.append(pair.get("ratio"))
    return pairs


def mask_areas(project: Project, product: str, generator: str) -> list[MaskAreas]:
    """Return the mask areas of each defect, sorted by its name."""
    synthetic, raw = project.path(synthetic_folder(product, generator)), project.path(f"data/raw/{product}")
    real_areas: dict[str, list[float]] = {}
    for record in split_records_of(project, product, "train"):
        if record.mask is not None:
            real_areas.setdefault(record.defect, []).append(float(load_mask(raw / record.mask).mean()))
    synthetic_areas: dict[str, list[float]] = {}
    for row in manifest_rows(synthetic / "manifest.parquet"):
        if row.accepted:
            synthetic_areas.setdefault(row.defect, []).append(_area_fraction(row, synthetic))
    return [
        MaskAreas(defect, _range(synthetic_areas.get(defect)), _range(real_areas.get(defect)))
        for defect in sorted(synthetic_areas.keys() | real_areas.keys())
    ]


def _area_fraction(row: ManifestRow, folder: Path) -> float:
    with open_image(folder / str(row.image)) as image:  # reads the size without the pixels
        return row.mask_area / (image.width * image.height)


def _range(values: list[float] | None) -> tuple[float, float, float] | None:
    return (min(values), float(np.median(values)), max(values)) if values else None
