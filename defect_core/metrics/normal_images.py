"""Scores of generated normal images against real ones, in the unit of the distance between two real halves."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.metrics.features import InceptionFeatures, Lite0Features
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.images import resize_images
from defect_core.metrics.neighbours import memorisation
from defect_core.metrics.sheet import FEW_IMAGES, KERNEL_SUBSET_SIZE, KERNEL_SUBSETS, NO_UNIT, six_digits
from defect_core.metrics.store import FeatureStore

HALVINGS = 5  # random splits of the real images into halves; the means over them vary by a few percent
MIN_HALF = 2  # a covariance needs two images

Images: TypeAlias = Sequence[NDArray[np.uint8]]


def score_normals(
    training: Images,
    unseen: Images,
    generated: Images,
    image_size: int = 128,
    seed: int = 0,
    store: FeatureStore | None = None,
    published_networks: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Returns the scores of generated normal images against all real normal images, of both sides of the split.

    The kernel distance of whole sets does not depend on the number of images. The Fréchet distance does. It is
    therefore computed between one half of the real images and as many generated images. `halves` has both distances
    between two halves of the real images, means over five random halvings: the score of a perfect generator.

    Args:
        training: real normal images that the generator was trained on, uint8 `[H,W,3]`.
        unseen: real normal images that the generator has not seen.
        generated: generated images.
        image_size: side in pixels to which all images are resized.
        seed: seed of subsets and halves.
        store: stored features of earlier calls.
        published_networks: whether Inception is used if its weights are installed.
        device: torch device of the networks.

    Returns:
        `scores`: `kernel_lite0`, `frechet_lite0`, and `kid` and `fid` if the weights of Inception are installed.
        `halves`: the same names. `scores` also has `memorisation_lite0` and `memorisation_copies` of the training
        images (see `neighbours.memorisation`). `missing` has the reason for each missing score. `protocol`.
        Six significant digits, JSON-ready, without paths and times.

    Raises:
        InputError: no generated or no training image.
    """
    if not len(generated) or not len(training):
        raise InputError("normals: no generated or no real normal image; expected at least one of each")
    sides = [resize_images(images, image_size) for images in (training, unseen, generated)]
    result: dict[str, Any] = {"scores": {}, "halves": {}, "missing": {}}
    protocol = _protocol(sides, image_size, seed)
    lite0 = Lite0Features(device)
    features = _extract(lite0, sides, store or FeatureStore(), "pooled")
    _add_distances(result, ("frechet_lite0", "kernel_lite0"), features, seed)
    nearest = memorisation(features[2], features[0])
    for name, value in (("memorisation_lite0", nearest.ratio), ("memorisation_copies", nearest.copies)):
        if value is None:
            result["missing"][name] = NO_UNIT
        else:
            result["scores"][name] = six_digits(value)
    protocol["networks"]["lite0"] = {"name": lite0.name, "digest": lite0.digest}
    try:
        if not published_networks:
            raise InputError("published networks are switched off")
        inception = InceptionFeatures(device)
    except InputError as error:
        result["missing"] |= {"fid": str(error), "kid": str(error)}
    else:
        _add_distances(result, ("fid", "kid"), _extract(inception, sides, store or FeatureStore(), "pool3"), seed)
        protocol["networks"]["inception"] = {"name": inception.name, "digest": inception.digest}
    return {**result, "protocol": protocol}


def _protocol(sides: Sequence[NDArray], image_size: int, seed: int) -> dict[str, Any]:
    return {
        "compared_with": "all real normal images, of both sides of the split",
        "counts": dict(zip(("training", "unseen", "generated"), map(len, sides), strict=True)),
        "image_size": image_size,
        "seed": seed,
        "kernel": {"degree": 3, "subsets": KERNEL_SUBSETS, "subset_size": f"{KERNEL_SUBSET_SIZE} or the smaller set"},
        "frechet": "one half of the real images and at most as many generated images",
        "halves": f"mean over {HALVINGS} random halvings of the real images",
        "networks": {},
    }


def _extract(
    network: Lite0Features | InceptionFeatures, sides: Sequence[NDArray], store: FeatureStore, column: str
) -> list[NDArray]:
    """Features of each side. An empty side has zero rows of the same width."""
    features = [store.features(f"{network.name}-{network.digest[:16]}", list(s), network.columns) for s in sides]
    width = features[0][column].shape[1]
    return [columns[column] if columns else np.zeros((0, width), np.float32) for columns in features]


def _add_distances(result: dict[str, Any], names: tuple[str, str], features: list[NDArray], seed: int) -> None:
    real, generated = np.concatenate(features[:2]), features[2]
    half = len(real) // 2
    if half < MIN_HALF or len(generated) < 2:
        reason = FEW_IMAGES if min(len(real), len(generated)) < 2 else "fewer than four real images to halve"
        result["missing"] |= dict.fromkeys(names, reason)
        return
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    for _ in range(HALVINGS):
        order, chosen = rng.permutation(len(real)), rng.permutation(len(generated))[:half]
        first, second = real[order[:half]], real[order[half : 2 * half]]
        rows.append(
            [
                frechet_distance(generated[chosen], first),
                frechet_distance(second[: len(chosen)], first),
                kernel_distance(second, first, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean,
            ]
        )
    frechet, frechet_halves, kernel_halves = np.mean(rows, axis=0)
    kernel = kernel_distance(generated, real, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean
    result["scores"] |= {names[0]: six_digits(frechet), names[1]: six_digits(kernel)}
    result["halves"] |= {names[0]: six_digits(frechet_halves), names[1]: six_digits(kernel_halves)}
