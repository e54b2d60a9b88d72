"""Views of defect images with the label of their defect type, and the composition of each training batch."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import bounding_box
from defect_core.data.records import load_image, load_mask
from defect_core.evaluation.batches import compute_synthetic_fraction, count_synthetic, cycle_shuffled
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.segmentation.data import Item, require_image

# Side of a crop as a multiple of the mask's bounding box, and its minimum as a fraction of the image's shorter side.
# (Not in the papers, which classify whole images.)
CROP_SCALE = 2.0
MIN_CROP_FRACTION = 0.25


class View(NamedTuple):
    """An image, uint8 `[S,S,3]`, and the label of its defect type."""

    image: NDArray[np.uint8]
    label: int


class DefectItem(Item, Protocol):
    """A record or manifest row of a defect image."""

    @property
    def defect(self) -> str:
        """Defect type."""
        ...


def load_views(items: Iterable[DefectItem], root: Path, classes: Sequence[str], config: ClassifierConfig) -> list[View]:
    """Read the images of the given defect types; those of other defect types are left out.

    Args:
        items: records or manifest rows with paths relative to `root`.
        root: folder that the paths start from.
        classes: names of the defect types; the label of a view is an index into it.
        config: settings.

    Raises:
        InputError: an image or mask cannot be read, or an item has no image.
    """
    views = []
    for item in items:
        if item.defect not in classes:
            continue
        image = load_image(root / require_image(item))
        if config.view == "crop" and item.mask is not None:
            image = crop_around(image, load_mask(root / item.mask, image.shape[:2]))
        size = (config.image_size, config.image_size)
        if image.shape[:2] != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        views.append(View(np.ascontiguousarray(image), classes.index(item.defect)))
    return views


def crop_around(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the square around the mask's bounding box, shifted into the image; the image itself if the mask is empty.

    Args:
        image: `[H,W,3]`.
        mask: `[H,W]`.
    """
    if not mask.any():
        return image
    top, left, bottom, right = bounding_box(mask)
    height, width = mask.shape
    minimum = MIN_CROP_FRACTION * min(height, width)
    side = round(max(CROP_SCALE * max(bottom - top, right - left), minimum))
    crop_height, crop_width = min(side, height), min(side, width)
    y = min(max((top + bottom - crop_height) // 2, 0), height - crop_height)
    x = min(max((left + right - crop_width) // 2, 0), width - crop_width)
    return image[y : y + crop_height, x : x + crop_width]


class BatchPlan(NamedTuple):
    """Images of one batch: indices into the real and the synthetic views."""

    real: list[int]
    synthetic: list[int]


def plan_batches(
    config: ClassifierConfig, real: Sequence[int], synthetic: Sequence[int], classes: int, seed: int
) -> Iterator[BatchPlan]:
    """Yield the composition of each of `config.steps` batches.

    Every arm uses the same defect types in the same order, each equally often. The fraction `synthetic_fraction` of the
    batch slots is synthetic, exactly on average. If a defect type has only real or only synthetic images, these fill
    all its slots.

    Args:
        config: settings.
        real: labels of the real views.
        synthetic: labels of the synthetic views.
        classes: number of defect types; each has at least one view.
        seed: decides the order of the defect types and of the images.
    """
    pools = [
        [
            cycle_shuffled(
                [i for i, label in enumerate(labels) if label == number], np.random.default_rng([seed, kind, number])
            )
            for number in range(classes)
        ]
        for kind, labels in ((1, real), (2, synthetic))
    ]
    available = [set(real), set(synthetic)]
    defect_types = cycle_shuffled(range(classes), np.random.default_rng([seed, 0]))
    per_batch = compute_synthetic_fraction(config.synthetic_fraction, len(real), len(synthetic)) * config.batch_size
    for step in range(config.steps):
        synthetic_slots = count_synthetic(per_batch, step)
        plan = BatchPlan([], [])
        for slot in range(config.batch_size):
            kind, label = int(slot < synthetic_slots), next(defect_types)
            if label not in available[kind]:
                kind = 1 - kind
            plan[kind].append(next(pools[kind][label]))
        yield plan
