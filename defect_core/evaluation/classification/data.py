"""Views of defect images with the number of their type, and what each training batch is made of."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.masks import bounding_box
from defect_core.data.records import load_image, load_mask
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.segmentation.data import synthetic_fraction_of

CONTEXT = 2.0  # side of a crop in sides of the mask's box
LEAST_CROP = 0.25  # and at least this part of the image's shorter side


class View(NamedTuple):
    """An image uint8 `[S,S,3]` and the number of its defect type."""

    image: NDArray[np.uint8]
    label: int


class Item(Protocol):
    """A record or manifest row of a defect image."""

    defect: str
    image: str
    mask: str | None


def load_views(items: Iterable[Item], root: Path, classes: Sequence[str], config: ClassifierConfig) -> list[View]:
    """Read the images of the given classes; those of other defect types are left out.

    Args:
        items: each with `defect`, `image` and `mask`, posix paths relative to `root`.
        classes: names of the types; a view's label is the place in it.

    Raises:
        InputError: an image or mask cannot be read.
    """
    views = []
    for item in items:
        if item.defect not in classes:
            continue
        image = load_image(root / item.image)
        if config.view == "crop" and item.mask is not None:
            image = crop_around(image, load_mask(root / item.mask, image.shape[:2]))
        size = (config.image_size, config.image_size)
        if image.shape[:2] != size:
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        views.append(View(np.ascontiguousarray(image), classes.index(item.defect)))
    return views


def crop_around(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The square around the mask's box, `CONTEXT` times as wide, shifted where it would leave the image `[H,W,3]`.

    An empty mask gives the image itself.
    """
    if not mask.any():
        return image
    top, left, bottom, right = bounding_box(mask)
    height, width = mask.shape
    least = LEAST_CROP * min(height, width)
    side = round(max(CONTEXT * max(bottom - top, right - left), least))
    high, wide = min(side, height), min(side, width)
    y = min(max((top + bottom - high) // 2, 0), height - high)
    x = min(max((left + right - wide) // 2, 0), width - wide)
    return image[y : y + high, x : x + wide]


class Plan(NamedTuple):
    """Which images one step sees: indices into the real and the synthetic views."""

    real: list[int]
    synthetic: list[int]


def batch_plans(
    config: ClassifierConfig, real: Sequence[int], synthetic: Sequence[int], classes: int, seed: int
) -> Iterator[Plan]:
    """The composition of each of `config.steps` batches.

    Every arm sees the same types in the same order, each as often as the others; of the places of a batch the part
    `synthetic_fraction` is synthetic, exactly on average. A type of which there is no synthetic image (or no real
    one) fills its places with the other kind.

    Args:
        real, synthetic: labels of the views of either kind.
        classes: how many types there are; each has at least one view.
    """
    pools = [
        [
            _endless(
                [i for i, label in enumerate(labels) if label == number], np.random.default_rng([seed, kind, number])
            )
            for number in range(classes)
        ]
        for kind, labels in ((1, real), (2, synthetic))
    ]
    has = [set(real), set(synthetic)]
    types = _endless(list(range(classes)), np.random.default_rng([seed, 0]))
    share = synthetic_fraction_of(config.synthetic_fraction, len(real), len(synthetic)) * config.batch_size
    for step in range(config.steps):
        made = int((step + 1) * share + 1e-9) - int(step * share + 1e-9)
        plan = Plan([], [])
        for place in range(config.batch_size):
            kind, label = int(place < made), next(types)
            if label not in has[kind]:
                kind = 1 - kind
            plan[kind].append(next(pools[kind][label]))
        yield plan


def _endless(values: list[int], rng: np.random.Generator) -> Iterator[int]:
    while values:
        yield from (values[i] for i in rng.permutation(len(values)))
