"""Are generated normal images like real good ones, measured by how unlike two halves of the real ones are?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.metrics.features import InceptionFeatures, Lite0Features
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.images import resize_images
from defect_core.metrics.memorisation import memorisation
from defect_core.metrics.sheet import FEW, KERNEL_SUBSET_SIZE, KERNEL_SUBSETS, six_digits
from defect_core.metrics.store import FeatureStore

HALVINGS = 5

Images = Sequence[NDArray[np.uint8]]


def score_normals(
    training: Images,
    unseen: Images,
    generated: Images,
    image_size: int = 128,
    seed: int = 0,
    store: FeatureStore | None = None,
    real_networks: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score generated normal images against all real good images, of both sides of the split.

    The kernel distance of whole sets does not depend on how many images there are. The Fréchet distance does, so it is
    taken between as many generated images as a half of the real ones holds, and that half; `halves` are both distances
    between two halves of the real images, means over five ways to halve them: what a perfect generator would score.

    Args:
        training, unseen: real good images that the generator has and has not seen, uint8 `[H,W,3]`.
        generated: generated images.
        image_size: all are brought to this side in pixels.
        seed: decides subsets and halves.
        store: where features are kept between calls.
        real_networks: False leaves Inception out even where it is at hand.

    Returns:
        `scores`: `kernel_lite0`, `frechet_lite0`, and `kid`, `fid` where Inception's weights are at hand; `halves`: the
        same names; `memorisation_lite0`, `memorisation_copies` of the training images (see `memorisation`); `missing`,
        the reason for each absent score; `protocol`. JSON-ready, six significant digits, no time, no path.

    Raises:
        InputError: no generated image, or no real one to compare with.
    """
    if not len(generated) or not len(training):
        raise InputError("normals: no generated or no real good image; expected at least one of each")
    store = store or FeatureStore()
    sides = [resize_images(images, image_size) for images in (training, unseen, generated)]
    result: dict[str, Any] = {"scores": {}, "halves": {}, "missing": {}}
    protocol: dict[str, Any] = {
        "compared_with": "all real good images, of both sides of the split",
        "counts": dict(zip(("training", "unseen", "generated"), map(len, sides), strict=True)),
        "image_size": image_size,
        "seed": seed,
        "kernel": {"degree": 3, "subsets": KERNEL_SUBSETS, "subset_size": f"{KERNEL_SUBSET_SIZE} or the smaller set"},
        "frechet": "as many generated images as a half of the real ones, or fewer if there are not so many",
        "halves": f"mean over {HALVINGS} random halvings of the real images",
        "networks": {},
    }
    lite0 = Lite0Features(device)
    seen = _see(lite0, sides, store, "pooled")
    _put(result, ("frechet_lite0", "kernel_lite0"), seen, seed)
    near = memorisation(seen[2], seen[0])
    for name, value in (("memorisation_lite0", near.ratio), ("memorisation_copies", near.copies)):
        if value is None:
            result["missing"][name] = "needs two different real images"
        else:
            result["scores"][name] = six_digits(value)
    protocol["networks"]["lite0"] = {"name": lite0.name, "digest": lite0.digest}
    try:
        if not real_networks:
            raise InputError("left out: real_networks is off")
        inception = InceptionFeatures(device)
    except InputError as error:
        result["missing"] |= {"fid": str(error), "kid": str(error)}
    else:
        _put(result, ("fid", "kid"), _see(inception, sides, store, "pool3"), seed)
        protocol["networks"]["inception"] = {"name": inception.name, "digest": inception.digest}
    return {**result, "protocol": protocol}


def _see(network: Any, sides: list[NDArray], store: FeatureStore, column: str) -> list[NDArray]:
    """Features of the three sides; an empty one has no rows of the right width."""
    found = [store.features(f"{network.name}-{network.digest[:16]}", images, network.columns) for images in sides]
    width = found[0][column].shape[1]
    return [features[column] if features else np.zeros((0, width), np.float32) for features in found]


def _put(result: dict[str, Any], names: tuple[str, str], seen: list[NDArray], seed: int) -> None:
    real, made = np.concatenate(seen[:2]), seen[2]
    half = len(real) // 2
    if half < 2 or len(made) < 2:
        for name in names:
            result["missing"][name] = FEW if min(len(real), len(made)) < 2 else "fewer than four real images to halve"
        return
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    for _ in range(HALVINGS):
        order, chosen = rng.permutation(len(real)), rng.permutation(len(made))[:half]
        first, second = real[order[:half]], real[order[half : 2 * half]]
        rows.append(
            [
                frechet_distance(made[chosen], first),
                frechet_distance(second[: len(chosen)], first),
                kernel_distance(second, first, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean,
            ]
        )
    frechet, frechet_halves, kernel_halves = np.mean(rows, axis=0)
    kernel = kernel_distance(made, real, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean
    result["scores"] |= {names[0]: six_digits(frechet), names[1]: six_digits(kernel)}
    result["halves"] |= {names[0]: six_digits(frechet_halves), names[1]: six_digits(kernel_halves)}
