"""Renders the demo products, image by image or as a whole data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defect_core.data.demo import flange, weave
from defect_core.data.demo.camera import SCALE, Scene, photograph
from defect_core.data.records import GOOD, save_png
from defect_core.errors import InputError

DEMO_PRODUCTS = ("weave", "flange")
SIZE = 128
"""Width and height of an image in pixels."""
TRAIN_NORMAL, TEST_NORMAL, PER_DEFECT = 60, 20, 27
"""Number of normal images to train and to test, and of images of each defect type."""

_RENDERERS = {"weave": weave, "flange": flange}
_MIN_AREA = 16  # pixels of a mask; a defect that is mostly off the product is rendered again


@dataclass(frozen=True)
class DemoImage:
    """A rendered image with exact ground truth.

    Attributes:
        image: uint8 [128, 128, 3].
        mask: bool [128, 128].
        clean: uint8 [128, 128, 3], the same photograph without the defect. It equals `image` except within two pixels
            of the mask, because the lens blurs.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    clean: NDArray[np.uint8]


def demo_defects(product: str) -> tuple[str, ...]:
    """Return the defect types of a demo product.

    Raises:
        InputError: unknown product.
    """
    if product not in _RENDERERS:
        raise InputError(f"{product}: no such demo product; expected one of {', '.join(DEMO_PRODUCTS)}")
    return tuple(_RENDERERS[product].DEFECTS)


def write_demo_product(product: str, out: Path, seed: int = 0) -> None:
    """Write a demo product in the layout of MVTec AD: 60 + 20 normal images and 27 of each defect type.

    An image depends on product, seed, folder and number only.

    Args:
        product: one of `DEMO_PRODUCTS`.
        out: folder to write to.
        seed: seed of the product.

    Raises:
        InputError: unknown product.
    """
    defects = demo_defects(product)
    for split, count in (("train", TRAIN_NORMAL), ("test", TEST_NORMAL)):
        for index in range(count):
            save_png(_render(product, f"{split}/{GOOD}", seed, index)[0], out / split / GOOD / f"{index:03}.png")
    for defect in defects:
        for index in range(PER_DEFECT):
            image, mask, *_ = _render(product, defect, seed, index)
            save_png(image, out / "test" / defect / f"{index:03}.png")
            save_png(mask, out / "ground_truth" / defect / f"{index:03}_mask.png")


def render_demo_image(product: str, kind: str, seed: int, index: int) -> DemoImage:
    """Return one image with its mask and the same image without the defect.

    Args:
        product: one of `DEMO_PRODUCTS`.
        kind: a defect type of the product, or `train/good` or `test/good`, whose mask is empty.
        seed: seed of the product.
        index: number of the image.

    Raises:
        InputError: unknown product or kind.
    """
    image, mask, clean, noise_key = _render(product, kind, seed, index)
    return DemoImage(image, mask, photograph(clean, np.random.default_rng(noise_key)))


def _render(
    product: str, kind: str, seed: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Scene, list[int]]:
    """Return image, mask, the scene without the defect, and the seed of the sensor noise."""
    kinds = (f"train/{GOOD}", f"test/{GOOD}", *demo_defects(product))
    if kind not in kinds:
        raise InputError(f"{product}: no such demo images {kind!r}; expected one of {', '.join(kinds)}")
    renderer = _RENDERERS[product]
    key = [seed, DEMO_PRODUCTS.index(product), kinds.index(kind), index]
    clean = scene = renderer.render_scene(np.random.default_rng([*key, 0]), SIZE * SCALE)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    if kind in renderer.DEFECTS:
        rng = np.random.default_rng([*key, 2])
        while mask.sum() < _MIN_AREA:
            scene = clean.copy()
            fine_mask = renderer.DEFECTS[kind](scene, rng)
            mask = fine_mask.reshape(SIZE, SCALE, SIZE, SCALE).any(axis=(1, 3))
    return photograph(scene, np.random.default_rng([*key, 1])), mask, clean, [*key, 1]
