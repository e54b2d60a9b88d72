"""Images and masks at the segmenter's size, and what each training batch is made of."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import downsample_mask
from defect_core.data.records import load_image, load_mask
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.settings import POOLED

# Hundreds of normal images are slow to decode, and few of them are ever chosen for a batch.
MAX_NORMAL_IMAGES = 256


class Sample(NamedTuple):
    """One image, uint8 `[S,S,3]`, and its mask, bool `[S,S]` (all False for a good image)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class ArmData:
    """Images of one arm at the segmenter's size.

    Attributes:
        defect_types: product and defect type of each real training defect.
        real: real training defects.
        normal: normal training images.
        synthetic: synthetic defects.
        test: test images, defects first.
    """

    defect_types: list[Hashable]
    real: list[Sample]
    normal: list[Sample]
    synthetic: list[Sample]
    test: list[Sample]

    @classmethod
    def concatenate(cls, parts: Sequence["ArmData"]) -> "ArmData":
        """Return the images of several products as one."""
        return cls(
            [each for part in parts for each in part.defect_types],
            [each for part in parts for each in part.real],
            [each for part in parts for each in part.normal],
            [each for part in parts for each in part.synthetic],
            [each for part in parts for each in part.test],
        )


class Item(Protocol):
    """Anything with an image path and a mask path (None: good), as `data.records.Record` has."""

    image: str
    mask: str | None


def load_samples(items: Iterable[Item], root: Path, image_size: int, limit: int | None = None) -> list[Sample]:
    """Read and resize the images of records or manifest rows.

    Args:
        items: each with `image` and `mask` (or None), posix paths relative to `root`.
        root: the folder that the paths start from.
        image_size: side in pixels of the result; the aspect ratio is not kept.
        limit: at most so many, evenly spread over the list (hundreds of good images are slow to decode and
            few of them are ever drawn); None reads all.

    Raises:
        InputError: an image or mask cannot be read.
    """
    chosen = list(items)
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    return [
        resize_sample(load_image(root / item.image), load_mask(root / item.mask) if item.mask else None, image_size)
        for item in chosen
    ]


def resize_sample(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, image_size: int) -> Sample:
    """Bring an image `[H,W,3]` and its mask `[H,W]` to `image_size` squared; no defect component vanishes."""
    size = (image_size, image_size)
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    if mask is None:
        mask = np.zeros(size, dtype=bool)
    elif mask.shape != size:
        mask = downsample_mask(mask, image_size, "area")
    return Sample(np.ascontiguousarray(image), np.asarray(mask, dtype=bool))


class BatchPlan(NamedTuple):
    """Which images one step sees: indices into the good, real and synthetic lists, in this order in the batch."""

    good: list[int]
    real: list[int]
    synthetic: list[int]


def batch_plans(config: SegmenterConfig, n_good: int, n_real: int, n_synthetic: int, seed: int) -> Iterator[BatchPlan]:
    """The composition of each of `config.steps` batches.

    Every batch has the same number of good images in every arm, and even the same good images: each list is
    walked in its own random order, reshuffled when it ends. `synthetic_fraction` of the defect places go to
    synthetic images, exactly on average when it is no whole number per batch; all to real images where there
    are no synthetic ones. Without good images their places go to defects.
    """
    good, real, synthetic = (
        _endless(n, np.random.default_rng([seed, stream])) for stream, n in enumerate((n_good, n_real, n_synthetic))
    )
    good_places = config.good_per_batch if n_good else 0
    defect_places = config.batch_size - good_places
    share = synthetic_fraction_of(config.synthetic_fraction, n_real, n_synthetic) * defect_places
    for step in range(config.steps):
        made = int((step + 1) * share + 1e-9) - int(step * share + 1e-9)
        yield BatchPlan(
            [next(good) for _ in range(good_places)],
            [next(real) for _ in range(defect_places - made)],
            [next(synthetic) for _ in range(made)],
        )


def synthetic_fraction_of(fraction: float | str, n_real: int, n_synthetic: int) -> float:
    """The part of the defect places, 0 to 1, that really goes to synthetic images.

    Args:
        fraction: 0 to 1, or `pooled`: the part that they are of all defect images.
    """
    if not n_synthetic or not n_real:
        return 1.0 if n_synthetic else 0.0
    return n_synthetic / (n_real + n_synthetic) if fraction == POOLED else float(fraction)


def auto_synthetic_fraction(real_per_defect: float) -> float:
    """The part of the defect places, 0 to 1/3, that is worth giving to synthetic images: 2 / (2 + n), at most a third.

    As if the pairs of a defect type were worth two real images of it more. The rule is ours, measured on MVTec AD
    `screw` and Magnetic-Tile with 2 to 25 images of a type: `docs/results.md`, "The synthetic share".

    Args:
        real_per_defect: n, the mean number of real training images of a defect type, 0 or more.
    """
    return min(1 / 3, 2 / (2 + real_per_defect))


def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(training part, validation part): every k-th sample is held out, so that an order by defect is stratified.

    Validation is empty when `fraction` of the samples is less than one.
    """
    count = int(len(samples) * fraction)
    count = min(count, len(samples) - 1) if samples else 0
    held = {(2 * i + 1) * len(samples) // (2 * count) for i in range(count)}
    return [s for i, s in enumerate(samples) if i not in held], [samples[i] for i in sorted(held)]


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while count:
        yield from rng.permutation(count).tolist()
