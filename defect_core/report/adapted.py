"""The test that a person can take: real good images and ones that the adapted backbone drew, mixed on one sheet."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.records import load_image
from defect_core.project.loading import split_records_of
from defect_core.project.paths import Project

REAL_SHOWN = 20


class MixedSheet(NamedTuple):
    """`images` uint8 [R, R, 3] in a mixed order; `drawn`: the places, from 1, of those that no camera took; `held_out`:
    (step, loss on held-out images) of the adaptation.
    """

    images: list[NDArray[np.uint8]]
    drawn: list[int]
    held_out: list[tuple[float, float]]


def mixed_sheet(project: Project, product: str) -> MixedSheet | None:
    """As many real good images, of both sides of the split, as drawn ones; None where `adapt` is off."""
    if project.params.adapt is None:
        return None
    folder = project.path(f"data/backbone/{product}")
    made = [load_image(path) for path in sorted(folder.glob("drawn/*.png"))]
    records = [r for side in ("train", "test") for r in split_records_of(project, product, side) if r.mask is None]
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(records))[:REAL_SHOWN].tolist())
    size = made[0].shape[:2]
    raw = project.path(f"data/raw/{product}")
    real = [Image.fromarray(load_image(raw / records[i].image)).resize(size, Image.Resampling.BICUBIC) for i in chosen]
    images, drawn = mixed([np.asarray(image) for image in real], made, rng)
    curve = json.loads((folder / "adaptation.json").read_text())
    return MixedSheet(images, drawn, [(point["step"], point["held_out"]) for point in curve])


def mixed(
    real: Sequence[NDArray[np.uint8]], made: Sequence[NDArray[np.uint8]], rng: np.random.Generator
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Both kinds in a random order, and the places, from 1, of those made."""
    both = [*real, *made]
    order = rng.permutation(len(both)).tolist()
    return [both[i] for i in order], [place for place, i in enumerate(order, 1) if i >= len(real)]
