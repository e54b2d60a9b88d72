"""The sheet of scores that `protocol.score_sets` fills: which score, of which features, and why one is missing."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance, pairwise_distance
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.ic_lpips import (
    IntraClusterDistance,
    Spread,
    cluster_embeddings,
    intra_cluster_distance,
    mean_pairwise_distance,
)
from defect_core.metrics.inception_score import inception_score
from defect_core.metrics.mask_diversity import mask_diversity
from defect_core.metrics.memorisation import memorisation, nearest_pairs
from defect_core.metrics.prdc import precision_recall
from defect_core.metrics.store import FeatureStore

IC_LPIPS_CAP = 50
KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
SPLITS_FROM = 500  # fewer images than this leave too little in each of ten splits
PAIRS_SHOWN = 5
FEW = "fewer than two real or generated images"

Images = NDArray[np.uint8]
Masks = NDArray[np.bool_]


class Sides(NamedTuple):
    """Everything that is scored, by defect and at one size: uint8 `[N,S,S,3]`, masks bool `[N,S,S]` or None.

    `real`: the training images; `target`: what distributions are compared with; `masked_*`: with all but the defect
    black; `names`: of the real and of the generated images, for the pairs that are listed.
    """

    real: dict[str, Images]
    target: dict[str, Images]
    made: dict[str, Images]
    masked_real: dict[str, Images] | None
    masked_made: dict[str, Images] | None
    made_masks: dict[str, Masks] | None
    names: tuple[Mapping[str, Sequence[str]] | None, Mapping[str, Sequence[str]] | None]


class Board:
    """Collects values, per defect and pooled, and the reasons for those that are missing."""

    def __init__(self, defects: Sequence[str]) -> None:
        self.pooled: dict[str, float] = {}
        self.defects: dict[str, dict[str, float]] = {d: {} for d in defects}
        self.missing: dict[str, str] = {}
        self.pairs: dict[str, dict[str, list[dict[str, Any]]]] = {d: {} for d in defects}

    def absent(self, name: str, reason: str) -> None:
        self.missing[name] = reason

    def put(self, name: str, value: float | None, defect: str | None = None, reason: str = "not defined") -> None:
        if value is None or not np.isfinite(value):
            self.absent(f"{defect}/{name}" if defect else name, reason)
        else:
            (self.defects[defect] if defect else self.pooled)[name] = six_digits(value)

    def average(self, name: str) -> None:
        values = [scores[name] for scores in self.defects.values() if name in scores]
        reasons = {self.missing.get(f"{d}/{name}") for d in self.defects}
        self.put(name, float(np.mean(values)) if values else None, reason=f"no defect has it: {reasons.pop()}")


def six_digits(value: float) -> float:
    """The value with six significant digits: the same on every machine."""
    return float(f"{value:.6g}")


def score_lite0(board: Board, network: Lite0Features, sides: Sides, store: FeatureStore, seed: int) -> None:
    """All scores on embedded features, and those of the masks."""

    def see(images: Images) -> dict[str, NDArray]:
        return store.features(f"{network.name}-{network.digest[:16]}", images, network.columns)

    made = {d: see(images) for d, images in sides.made.items()}
    real = {d: see(images) for d, images in sides.real.items()}
    for d in made:
        a, b = made[d], real[d]
        board.put("score_lite0", inception_score(a["probabilities"]), d)
        embedded = [side["embedding"].astype(np.float32) for side in (a, b)]
        _put_clusters(board, "ic_lpips_lite0", cluster_embeddings(*embedded, IC_LPIPS_CAP, "drop", seed), d)
        board.put("diversity", mean_pairwise_distance(embedded[0]), d, "fewer than two generated images")
        near = memorisation(a["pooled"], b["pooled"])
        reason = "needs two different real images"
        board.put("memorisation_lite0", near.ratio, d, reason)
        board.put("memorisation_copies", near.copies, d, reason)
        flat = [images[d].reshape(len(images[d]), -1).astype(np.float32) for images in (sides.made, sides.real)]
        board.put("memorisation_pixels", memorisation(*flat).ratio, d, reason)
        for space, rows in (("features", (a["pooled"], b["pooled"])), ("pixels", flat)):
            board.pairs[d][space] = _listed(rows, d, sides.names)
        if sides.masked_made is not None and sides.masked_real is not None:
            rows = [see(side[d])["embedding"].astype(np.float32) for side in (sides.masked_made, sides.masked_real)]
            _put_clusters(board, "ic_lpips_masked_lite0", cluster_embeddings(*rows, IC_LPIPS_CAP, "drop", seed), d)
    names = ["score_lite0", "ic_lpips_lite0", "diversity"]
    names += ["memorisation_lite0", "memorisation_pixels", "memorisation_copies"]
    for name in [*names, *(["ic_lpips_masked_lite0"] if sides.masked_made is not None else [])]:
        board.average(name)
    if sides.masked_made is None:
        board.absent("ic_lpips_masked_lite0", "no masks given")
    _score_masks(board, sides)
    target = real if sides.target is sides.real else {d: see(images) for d, images in sides.target.items()}
    pooled = {d: (made[d]["pooled"], target[d]["pooled"]) for d in made}
    _put_distances(board, ("frechet_lite0", "kernel_lite0"), pooled, seed)
    a, b = _put_pooled(board, ("frechet_lite0", "kernel_lite0"), pooled, seed)
    _put_precision(board, a, b, "_lite0")


def score_inception(board: Board, network: InceptionFeatures, sides: Sides, store: FeatureStore, seed: int) -> None:
    """FID, KID, IS, and precision and its kin on Inception's features."""

    def see(images: Images) -> dict[str, NDArray]:
        return store.features(f"{network.name}-{network.digest[:16]}", images, network.columns)

    made = {d: see(images) for d, images in sides.made.items()}
    features = {d: (made[d]["pool3"], see(sides.target[d])["pool3"]) for d in made}
    _put_distances(board, ("fid", "kid"), features, seed)
    a, b = _put_pooled(board, ("fid", "kid"), features, seed)
    _put_precision(board, a, b, "")
    if not network.has_logits:
        board.absent("is", "the Inception weights at hand lack the last layer; torch-fidelity's own file has it")
        return
    rng = np.random.default_rng(seed)
    for d, columns in made.items():
        shuffled = rng.permutation(columns["probabilities"])
        board.put("is", inception_score(shuffled, 10 if len(shuffled) >= SPLITS_FROM else 1), d)
    board.average("is")


def score_lpips(board: Board, network: LpipsDistance, sides: Sides, store: FeatureStore, seed: int) -> None:
    """LPIPS, its mean over pairs, IC-LPIPS and IC-LPIPS(a); a defect whose images are unchanged is not seen again."""
    from defect_core.data.records import pixel_digest

    masked = sides.masked_made is not None
    reason = "fewer than two generated images"
    for d in sides.made:
        groups = [sides.made[d], sides.real[d]]
        if sides.masked_made is not None and sides.masked_real is not None:
            groups += [sides.masked_made[d], sides.masked_real[d]]
        key = {"network": network.digest, "seed": seed, "cap": IC_LPIPS_CAP, "version": 1}
        key["images"] = [[pixel_digest(image) for image in group] for group in groups]
        found = store.result("lpips-of-sets", key, lambda groups=groups: _lpips_of(network, groups, seed))
        board.put("lpips", found["lpips"], d)
        board.put("lpips_diversity", found["diversity"], d, reason)
        _put_clusters(board, "ic_lpips", IntraClusterDistance(**found["clusters"]), d)
        if masked:
            _put_clusters(board, "ic_lpips_masked", IntraClusterDistance(**found["masked"]), d)
    for name in ["lpips", "lpips_diversity", "ic_lpips", *(["ic_lpips_masked"] if masked else [])]:
        board.average(name)
    if not masked:
        board.absent("ic_lpips_masked", "no masks given")


def _lpips_of(network: LpipsDistance, groups: list[Images], seed: int) -> dict[str, Any]:
    """Scores of one defect in one pass over its images: an embedding is megabytes, so few are held at a time."""
    made, real = groups[:2]
    spread, to_real = Spread(), []
    references = network.embed(real)

    def embed(images: Images) -> NDArray[np.float32]:
        rows = network.embed(images)
        spread.update(rows)
        to_real.append(pairwise_distance(rows, references).mean(1))
        return rows

    clusters = intra_cluster_distance(made, real, embed, IC_LPIPS_CAP, "drop", seed, lambda _: references)
    masked = None
    if len(groups) == 4:
        masked = intra_cluster_distance(groups[2], groups[3], network.embed, IC_LPIPS_CAP, "drop", seed)._asdict()
    return {
        "lpips": float(np.concatenate(to_real).mean()),
        "diversity": spread.compute(),
        "clusters": clusters._asdict(),
        "masked": masked,
    }


def _score_masks(board: Board, sides: Sides) -> None:
    names = ("mask_diversity", "mask_shape_diversity")
    if sides.made_masks is None:
        for name in names:
            board.absent(name, "no masks given")
        return
    for d, masks in sides.made_masks.items():
        if sum(bool(mask.any()) for mask in masks) > 1:
            found = mask_diversity(masks)
            board.put(names[0], found.placed, d)
            board.put(names[1], found.shape, d)
        else:
            for name in names:
                board.absent(f"{d}/{name}", "fewer than two masks with a defect pixel")
    for name in names:
        board.average(name)


def _put_distances(board: Board, names: tuple[str, str], features: dict, seed: int) -> None:
    for d, (a, b) in features.items():
        if min(len(a), len(b)) > 1:
            board.put(names[0], frechet_distance(a, b), d)
            board.put(names[1], _kernel(a, b, seed), d)
        else:
            for name in names:
                board.absent(f"{d}/{name}", FEW)


def _put_pooled(
    board: Board, names: tuple[str, str], features: dict[str, tuple[NDArray, NDArray]], seed: int
) -> tuple[NDArray, NDArray]:
    """The two distances over all defects together; gives the pooled features (generated, real)."""
    a, b = (np.concatenate(side) for side in zip(*features.values(), strict=True))
    if min(len(a), len(b)) > 1:
        board.put(names[0], frechet_distance(a, b))
        board.put(names[1], _kernel(a, b, seed))
    else:
        for name in names:
            board.absent(name, FEW)
    return a, b


def _put_precision(board: Board, made: NDArray, real: NDArray, ending: str) -> None:
    for name in ("precision", "recall", "density", "coverage"):
        if min(len(made), len(real)) > 1:
            board.put(name + ending, getattr(precision_recall(real, made), name))
        else:
            board.absent(name + ending, FEW)


def _put_clusters(board: Board, name: str, result: IntraClusterDistance, defect: str) -> None:
    board.put(name, result.value, defect, result.reason)


def _listed(rows: Any, defect: str, names: tuple[Any, Any]) -> list[dict[str, Any]]:
    def named(side: int, index: int) -> str | int:
        return index if names[side] is None else names[side][defect][index]

    return [
        {
            "generated": named(1, pair.generated),
            "real": named(0, pair.training),
            "ratio": None if pair.ratio is None else six_digits(pair.ratio),
        }
        for pair in nearest_pairs(*rows, count=PAIRS_SHOWN)
    ]


def _kernel(a: NDArray, b: NDArray, seed: int) -> float:
    return kernel_distance(a, b, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean
