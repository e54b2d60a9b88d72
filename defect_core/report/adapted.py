"""Test of realism for the reader: real normal images and generated ones of the adapted backbone, mixed on one sheet."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.guarded import read_json_list
from defect_core.data.records import load_image
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project

REAL_IMAGES = 20


class MixedSheet(NamedTuple):
    """Real and generated normal images in random order.

    Attributes:
        images: uint8 [R, R, 3].
        generated: positions of the generated images in `images`, counted from 1.
        held_out: (step, loss on held-out images) of the adaptation.
    """

    images: list[NDArray[np.uint8]]
    generated: list[int]
    held_out: list[tuple[float, float]]


def mixed_sheet(project: Project, product: str) -> MixedSheet | None:
    """Return up to 20 real normal images of both splits, mixed with the generated ones; None where `adapt` is off."""
    if project.params.adapt is None:
        return None
    folder = project.path(f"data/backbone/{product}")
    generated = [load_image(path) for path in sorted(folder.glob("samples/*.png"))]
    records = [r for side in ("train", "test") for r in split_records_of(project, product, side) if r.mask is None]
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(records))[:REAL_IMAGES].tolist())
    size = generated[0].shape[:2]
    raw = project.path(f"data/raw/{product}")
    real = [Image.fromarray(load_image(raw / records[i].image)).resize(size, Image.Resampling.BICUBIC) for i in chosen]
    images, positions = shuffle_together([np.asarray(image) for image in real], generated, rng)
    curve = read_json_list(folder / "adaptation.json")
    return MixedSheet(images, positions, [(point["step"], point["held_out"]) for point in curve])


def shuffle_together(
    real: Sequence[NDArray[np.uint8]], generated: Sequence[NDArray[np.uint8]], rng: np.random.Generator
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Return both kinds of images in random order, and the positions of the generated ones, counted from 1."""
    images = [*real, *generated]
    permutation = rng.permutation(len(images)).tolist()
    positions = [position for position, i in enumerate(permutation, 1) if i >= len(real)]
    return [images[i] for i in permutation], positions
