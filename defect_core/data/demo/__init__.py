"""Two demo products, drawn: a woven fabric (texture) and a turned metal flange (object), with exact masks.

They stand in for a real data set where none is at hand: a first run needs no download and no licence.
"""

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
TRAIN_GOOD, TEST_GOOD, PER_DEFECT = 60, 20, 27

_DRAWERS = {"weave": weave, "flange": flange}
_MIN_AREA = 16


@dataclass(frozen=True)
class DemoImage:
    """`image` uint8 [128, 128, 3], `mask` bool [128, 128], and `clean`, the same photograph without the defect.

    `image` and `clean` are equal but within two pixels of the mask (the lens blurs).
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    clean: NDArray[np.uint8]


def demo_defects(product: str) -> tuple[str, ...]:
    """The defect types of a demo product.

    Raises:
        InputError: unknown product.
    """
    if product not in _DRAWERS:
        raise InputError(f"{product}: no such demo product; expected one of {', '.join(DEMO_PRODUCTS)}")
    return tuple(_DRAWERS[product].DEFECTS)


def make_demo(product: str, out: Path, seed: int = 0) -> None:
    """Draw a demo product into `out` in MVTec AD's layout: 60 + 20 good images and 27 of each defect, 128 px RGB.

    An image depends on (product, seed, its folder, its number) only.

    Raises:
        InputError: unknown product.
    """
    defects = demo_defects(product)
    for split, count in (("train", TRAIN_GOOD), ("test", TEST_GOOD)):
        for index in range(count):
            save_png(_draw(product, f"{split}/{GOOD}", seed, index)[0], out / split / GOOD / f"{index:03}.png")
    for defect in defects:
        for index in range(PER_DEFECT):
            image, mask, *_ = _draw(product, defect, seed, index)
            save_png(image, out / "test" / defect / f"{index:03}.png")
            save_png(mask, out / "ground_truth" / defect / f"{index:03}_mask.png")


def draw_image(product: str, kind: str, seed: int, index: int) -> DemoImage:
    """Draw one image with its clean twin; `kind` is a defect of the product, `train/good` or `test/good` (empty mask).

    Raises:
        InputError: unknown product or kind.
    """
    image, mask, clean, noise = _draw(product, kind, seed, index)
    return DemoImage(image, mask, photograph(clean, np.random.default_rng(noise)))


def _draw(
    product: str, kind: str, seed: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Scene, list[int]]:
    """Image, mask, the scene without the defect, and the key of the sensor noise."""
    kinds = (f"train/{GOOD}", f"test/{GOOD}", *demo_defects(product))
    if kind not in kinds:
        raise InputError(f"{product}: no such demo images {kind!r}; expected one of {', '.join(kinds)}")
    drawer = _DRAWERS[product]
    key = [seed, DEMO_PRODUCTS.index(product), kinds.index(kind), index]
    clean = scene = drawer.draw_scene(np.random.default_rng([*key, 0]), SIZE * SCALE)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    if kind in drawer.DEFECTS:
        rng = np.random.default_rng([*key, 2])
        while mask.sum() < _MIN_AREA:  # a stroke may leave the part; then another is drawn
            scene = clean.copy()
            fine = drawer.DEFECTS[kind](scene, rng)
            mask = fine.reshape(SIZE, SCALE, SIZE, SCALE).any(axis=(1, 3))
    return photograph(scene, np.random.default_rng([*key, 1])), mask, clean, [*key, 1]


__all__ = ["DEMO_PRODUCTS", "DemoImage", "demo_defects", "draw_image", "make_demo"]
