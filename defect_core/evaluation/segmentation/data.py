"""Images and masks at the segmenter's size, and the composition of each training batch."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import downsample_mask
from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.evaluation.batches import compute_synthetic_fraction, count_synthetic, cycle_shuffled
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.scale import WorkingScale

# Hundreds of normal images are slow to decode, and few of them are ever chosen for a batch.
MAX_NORMAL_IMAGES = 256


class Sample(NamedTuple):
    """One image, uint8 `[S,S,3]`, and its mask, bool `[S,S]` (all False for a normal image)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


class ImageInfo(NamedTuple):
    """What is known of a real image besides its pixels.

    Attributes:
        name: path of the image in the records.
        unit: images of one unit show the same item; a unit is in one fold.
        defects: its defect types; empty for a normal image.
        pixel_area: pixels of the original image per pixel of the sample.
    """

    name: str
    unit: str
    defects: tuple[str, ...]
    pixel_area: float


@dataclass(frozen=True)
class TrainingImages:
    """Whole real training images of one product, from which the folds of cross-fitting are made.

    Attributes:
        real: images with defects, in the order of `ArmData.real`.
        real_info: of each of `real`.
        normal: normal images, also those that are not trained on.
        normal_info: of each of `normal`.
        trained_normal: indices into `normal` of the images whose samples `ArmData.normal` starts with.
        place_owner: indices into `real` of the images whose normal places follow in `ArmData.normal`.
        synthetic_sources: names of the real images that each synthetic image was made from.
    """

    real: Sequence[Sample]
    real_info: list[ImageInfo]
    normal: Sequence[Sample]
    normal_info: list[ImageInfo]
    trained_normal: list[int]
    place_owner: list[int]
    synthetic_sources: list[frozenset[str]]


@dataclass(frozen=True)
class ArmData:
    """Images of one arm at the segmenter's size, or at the working resolution of `image_size: auto`.

    Attributes:
        defect_types: product and defect type of each defect in the real training images.
        real: real training defects; with a working resolution their crops, `scale.crops` in a row for each image.
        normal: normal training images; with a working resolution their crops, also of normal places of defect images.
        synthetic: synthetic defects, like `real`.
        test: test images, defects first.
        scale: working resolution; None for a fixed size.
        test_info: of each test image; empty if it is not known.
        training: whole training images; None if no thresholds are computed from them.
    """

    defect_types: list[Hashable]
    real: list[Sample]
    normal: list[Sample]
    synthetic: list[Sample]
    test: Sequence[Sample]
    scale: WorkingScale | None = None
    test_info: Sequence[ImageInfo] = ()
    training: TrainingImages | None = None

    @property
    def crops(self) -> int:
        """Number of samples of each training image."""
        return 1 if self.scale is None else self.scale.crops

    @classmethod
    def concatenate(cls, parts: Sequence["ArmData"]) -> "ArmData":
        """Return the training images of several products as those of one, without their test images.

        With working resolutions the tile and the number of crops must be equal (see `scale.share_tile`).
        """
        return cls(
            [each for part in parts for each in part.defect_types],
            [each for part in parts for each in part.real],
            [each for part in parts for each in part.normal],
            [each for part in parts for each in part.synthetic],
            (),
            parts[0].scale,
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
    """Read and resize the images of records or manifest rows; the masks of one image are united.

    Args:
        items: records or manifest rows with paths relative to `root`; an image has one for each defect type.
        root: folder that the paths start from.
        image_size: side of the result in pixels; the aspect ratio is not preserved.
        limit: maximum number of images, evenly spaced in the list; None reads all.

    Raises:
        InputError: an image or mask cannot be read, or an item has no image.
    """
    return [stored.load((image_size, image_size)) for stored in find_images(items, root, limit)]


class StoredImage(NamedTuple):
    """Files of one image and of its masks, which are united; no mask for a normal image."""

    image: Path
    masks: tuple[Path, ...]

    def load(self, size: tuple[int, int] | WorkingScale) -> Sample:
        """Return the image at a size (height, width), or at the working resolution.

        Raises:
            InputError: a file cannot be read.
        """
        image = load_image(self.image)
        mask = None
        for file in self.masks:
            mask = load_mask(file) if mask is None else mask | load_mask(file)
        return resize_sample(image, mask, size.size(*image.shape[:2]) if isinstance(size, WorkingScale) else size)


def find_images(items: Iterable[Item], root: Path, limit: int | None = None) -> list[StoredImage]:
    """Return the images of records or manifest rows in the order of their first item; arguments as `load_samples`.

    Raises:
        InputError: an item has no image.
    """
    masks: dict[str, list[Path]] = {}
    for item in items:
        found = masks.setdefault(require_image(item), [])
        if item.mask:
            found.append(root / item.mask)
    images = [StoredImage(root / name, tuple(files)) for name, files in masks.items()]
    if limit is not None and len(images) > limit:
        images = [images[i * len(images) // limit] for i in range(limit)]
    return images


class StoredSamples(Sequence[Sample]):
    """Images at the working resolution, each of which is read when it is needed.

    Args:
        images: files of each image, with its working resolution.
    """

    def __init__(self, images: Sequence[tuple[StoredImage, WorkingScale]]) -> None:
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredSamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | StoredSamples":
        """Read one image, or return some of them unread."""
        if isinstance(index, slice):
            return StoredSamples(self.images[index])
        stored, scale = self.images[index]
        return stored.load(scale)


class SomeSamples(Sequence[Sample]):
    """Some of the samples of a sequence, each of which is read when it is needed.

    Args:
        samples: the sequence.
        indices: numbers of the samples in it.
    """

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SomeSamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | SomeSamples":
        """Return one sample, or some of them unread."""
        if isinstance(index, slice):
            return SomeSamples(self.samples, self.indices[index])
        return self.samples[self.indices[index]]


def require_image(item: Item) -> str:
    """Return the path of an item's image.

    Raises:
        InputError: it has none, because its pair was rejected.
    """
    if item.image is None:
        raise InputError("manifest: a row without an image, so its pair was rejected; expected accepted pairs only")
    return item.image


def resize_sample(
    image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, image_size: int | tuple[int, int]
) -> Sample:
    """Resize an image `[H,W,3]` and its mask `[H,W]`; no defect component vanishes.

    Args:
        image: image of any size.
        mask: its mask; None for a normal image.
        image_size: height and width of the result in pixels; an int stands for both.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    if mask is None:
        mask = np.zeros(size, dtype=bool)
    elif mask.shape != size:
        mask = downsample_mask(mask, size, "area")
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
