"""Images and masks at the segmenter's size, and the composition of each training batch."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import downsample_mask
from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.evaluation.batches import compute_synthetic_fraction, count_synthetic, cycle_shuffled
from defect_core.evaluation.segmentation.config import SegmenterConfig

# Hundreds of normal images are slow to decode, and few of them are ever chosen for a batch.
MAX_NORMAL_IMAGES = 256


class Sample(NamedTuple):
    """One image, uint8 `[S,S,3]`, and its mask, bool `[S,S]` (all False for a normal image)."""

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
        """Return the images of several products as those of one."""
        return cls(
            [each for part in parts for each in part.defect_types],
            [each for part in parts for each in part.real],
            [each for part in parts for each in part.normal],
            [each for part in parts for each in part.synthetic],
            [each for part in parts for each in part.test],
        )


class Item(Protocol):
    """A record or manifest row: paths of an image and of its mask, None for a normal image."""

    @property
    def image(self) -> str | None:
        """POSIX path of the image; None for a pair that is not stored."""
        ...

    @property
    def mask(self) -> str | None:
        """POSIX path of the mask; None for a normal image."""
        ...


def load_samples(items: Iterable[Item], root: Path, image_size: int, limit: int | None = None) -> list[Sample]:
    """Read and resize the images of records or manifest rows.

    Args:
        items: records or manifest rows with paths relative to `root`.
        root: folder that the paths start from.
        image_size: side of the result in pixels; the aspect ratio is not preserved.
        limit: maximum number of images, evenly spaced in the list; None reads all.

    Raises:
        InputError: an image or mask cannot be read, or an item has no image.
    """
    chosen = list(items)
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    samples = []
    for item in chosen:
        image = load_image(root / require_image(item))
        samples.append(resize_sample(image, load_mask(root / item.mask) if item.mask else None, image_size))
    return samples


def require_image(item: Item) -> str:
    """Return the path of an item's image.

    Raises:
        InputError: it has none, because its pair was rejected.
    """
    if item.image is None:
        raise InputError("manifest: a row without an image, so its pair was rejected; expected accepted pairs only")
    return item.image


def resize_sample(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, image_size: int) -> Sample:
    """Resize an image `[H,W,3]` and its mask `[H,W]` to a square; no defect component vanishes.

    Args:
        image: image of any size.
        mask: its mask; None for a normal image.
        image_size: side of the result in pixels.
    """
    size = (image_size, image_size)
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    if mask is None:
        mask = np.zeros(size, dtype=bool)
    elif mask.shape != size:
        mask = downsample_mask(mask, image_size, "area")
    return Sample(np.ascontiguousarray(image), np.asarray(mask, dtype=bool))


class BatchPlan(NamedTuple):
    """Images of one batch: indices into the normal, real and synthetic images, which are in this order in the batch."""

    normal: list[int]
    real: list[int]
    synthetic: list[int]


def plan_batches(
    config: SegmenterConfig, n_normal: int, n_real: int, n_synthetic: int, seed: int
) -> Iterator[BatchPlan]:
    """Yield the composition of each of `config.steps` batches.

    Every batch contains the same normal images in every arm. The fraction `synthetic_fraction` of the defect slots goes
    to synthetic images, exactly on average. Without synthetic images all defect slots go to real images. Without normal
    images their slots go to defects.

    Args:
        config: settings.
        n_normal: number of normal images.
        n_real: number of real defects.
        n_synthetic: number of synthetic defects.
        seed: decides the order of the images.
    """
    normal, real, synthetic = (
        cycle_shuffled(range(n), np.random.default_rng([seed, stream]))
        for stream, n in enumerate((n_normal, n_real, n_synthetic))
    )
    normal_slots = config.normal_per_batch if n_normal else 0
    defect_slots = config.batch_size - normal_slots
    per_batch = compute_synthetic_fraction(config.synthetic_fraction, n_real, n_synthetic) * defect_slots
    for step in range(config.steps):
        synthetic_slots = count_synthetic(per_batch, step)
        yield BatchPlan(
            [next(normal) for _ in range(normal_slots)],
            [next(real) for _ in range(defect_slots - synthetic_slots)],
            [next(synthetic) for _ in range(synthetic_slots)],
        )
