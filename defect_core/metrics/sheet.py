"""The score sheet that `protocol.score_sets` fills: scores of each set of features, and reasons for missing scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from defect_core.data.records import pixel_digest
from defect_core.metrics.diversity import mask_diversity
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance, pairwise_distance
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.intra_cluster import (
    IntraClusterResult,
    PairwiseMean,
    cluster_embeddings,
    intra_cluster_distance,
    mean_pairwise_distance,
)
from defect_core.metrics.neighbours import memorisation, nearest_pairs
from defect_core.metrics.prdc import precision_recall
from defect_core.metrics.store import FeatureStore

IC_LPIPS_CAP = 50  # AnomalyDiffusion's script
KERNEL_SUBSETS = 100  # torch-fidelity's default
KERNEL_SUBSET_SIZE = 1000  # torch-fidelity's default
SPLITS_FROM = 500  # with fewer images each of ten splits has too few
LISTED_PAIRS = 5
FEW_IMAGES = "fewer than two real or generated images"
FEW_GENERATED = "fewer than two generated images"
FEW_MASKS = "fewer than two masks with a defect pixel"
NO_UNIT = "needs two different real images"
NO_MASKS = "no masks given"

Images: TypeAlias = NDArray[np.uint8]
Masks: TypeAlias = NDArray[np.bool_]
Names: TypeAlias = Mapping[str, Sequence[str]]
FeaturePairs: TypeAlias = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


class ScoredSets(NamedTuple):
    """All images and masks that are scored, by defect type and at one size.

    Attributes:
        real: training images, uint8 `[N,S,S,3]`.
        target: images with which distributions are compared.
        generated: generated images.
        masked_real: training images, black outside the defect, or None.
        masked_generated: generated images, black outside the defect, or None.
        generated_masks: bool `[N,S,S]`, or None.
        names: names of the real and of the generated images in the list of nearest pairs, or None.
    """

    real: Mapping[str, Images]
    target: Mapping[str, Images]
    generated: Mapping[str, Images]
    masked_real: Mapping[str, Images] | None = None
    masked_generated: Mapping[str, Images] | None = None
    generated_masks: Mapping[str, Masks] | None = None
    names: tuple[Names | None, Names | None] = (None, None)


class ScoreSheet:
    """Scores per defect type and pooled, and the reasons for those that are missing.

    Attributes:
        pooled: scores of all defect types together, by name.
        defects: scores by defect type and name.
        missing: reasons by name, or by `defect/name`.
        nearest: by defect type and space (`features`, `pixels`), the generated images nearest to a training image.

    Args:
        defects: the defect types.
    """

    def __init__(self, defects: Sequence[str]) -> None:
        self.pooled: dict[str, float] = {}
        self.defects: dict[str, dict[str, float]] = {defect: {} for defect in defects}
        self.missing: dict[str, str] = {}
        self.nearest: dict[str, dict[str, list[dict[str, Any]]]] = {defect: {} for defect in defects}

    def mark_missing(self, name: str, reason: str, defect: str | None = None) -> None:
        """Records why a score is missing, of one defect type or of all together."""
        self.missing[f"{defect}/{name}" if defect else name] = reason

    def add(self, name: str, value: float | None, defect: str | None = None, reason: str = "not defined") -> None:
        """Adds a score, or the reason if the value is None or not finite."""
        if value is None or not np.isfinite(value):
            self.mark_missing(name, reason, defect)
        else:
            (self.defects[defect] if defect else self.pooled)[name] = six_digits(value)

    def add_mean(self, name: str) -> None:
        """Adds the mean of a score over the defect types that have it."""
        values = [scores[name] for scores in self.defects.values() if name in scores]
        reasons = {self.missing.get(f"{defect}/{name}") for defect in self.defects}
        self.add(name, float(np.mean(values)) if values else None, reason=f"no defect has it: {reasons.pop()}")


def six_digits(value: float) -> float:
    """Returns the value with six significant digits, which are the same on every machine."""
    return float(f"{value:.6g}")


def score_lite0(sheet: ScoreSheet, network: Lite0Features, sets: ScoredSets, store: FeatureStore, seed: int) -> None:
    """Adds all scores of the embedded network, and those of the masks.

    Args:
        sheet: receives the scores.
        network: the feature extractor.
        sets: images and masks.
        store: stored features.
        seed: seed of subsets and caps.
    """
    generated = {d: _extract(network, images, store) for d, images in sets.generated.items()}
    real = {d: _extract(network, images, store) for d, images in sets.real.items()}
    for d in generated:
        a, b = generated[d], real[d]
        sheet.add("score_lite0", inception_score(a["probabilities"]), d)
        embeddings = a["embedding"].astype(np.float32)
        _add_clusters(sheet, "ic_lpips_lite0", _cluster(embeddings, b["embedding"], seed), d)
        sheet.add("diversity", mean_pairwise_distance(embeddings), d, FEW_GENERATED)
        _add_memorisation(sheet, sets, d, a["pooled"], b["pooled"])
        if sets.masked_generated is not None and sets.masked_real is not None:
            a, b = (_extract(network, side[d], store) for side in (sets.masked_generated, sets.masked_real))
            _add_clusters(sheet, "ic_lpips_masked_lite0", _cluster(a["embedding"], b["embedding"], seed), d)
    names = ["score_lite0", "ic_lpips_lite0", "diversity"]
    names += ["memorisation_lite0", "memorisation_pixels", "memorisation_copies"]
    for name in [*names, *(["ic_lpips_masked_lite0"] if sets.masked_generated is not None else [])]:
        sheet.add_mean(name)
    if sets.masked_generated is None:
        sheet.mark_missing("ic_lpips_masked_lite0", NO_MASKS)
    _score_masks(sheet, sets)
    target = real
    if sets.target is not sets.real:
        target = {d: _extract(network, images, store) for d, images in sets.target.items()}
    features = {d: (generated[d]["pooled"], target[d]["pooled"]) for d in generated}
    _add_distances(sheet, ("frechet_lite0", "kernel_lite0"), features, seed, "_lite0")


def score_inception(
    sheet: ScoreSheet, network: InceptionFeatures, sets: ScoredSets, store: FeatureStore, seed: int
) -> None:
    """Adds FID, KID, IS, precision, recall, density and coverage on the features of Inception.

    Args:
        sheet: receives the scores.
        network: the feature extractor.
        sets: images.
        store: stored features.
        seed: seed of subsets and of the order of the images in IS.
    """
    generated = {d: _extract(network, images, store) for d, images in sets.generated.items()}
    features = {d: (generated[d]["pool3"], _extract(network, sets.target[d], store)["pool3"]) for d in generated}
    _add_distances(sheet, ("fid", "kid"), features, seed, "")
    if not network.has_logits:
        sheet.mark_missing("is", "the Inception weights lack the last layer; torch-fidelity's own file has it")
        return
    rng = np.random.default_rng(seed)
    for d, columns in generated.items():
        shuffled = rng.permutation(columns["probabilities"])
        sheet.add("is", inception_score(shuffled, 10 if len(shuffled) >= SPLITS_FROM else 1), d)
    sheet.add_mean("is")


def score_lpips(sheet: ScoreSheet, network: LpipsDistance, sets: ScoredSets, store: FeatureStore, seed: int) -> None:
    """Adds LPIPS, its mean over pairs, IC-LPIPS and IC-LPIPS(a). Unchanged sets have their scores in the store.

    Args:
        sheet: receives the scores.
        network: the perceptual distance.
        sets: images.
        store: stored scores.
        seed: seed of the caps.
    """
    is_masked = sets.masked_generated is not None
    for d in sets.generated:
        groups = [sets.generated[d], sets.real[d]]
        if sets.masked_generated is not None and sets.masked_real is not None:
            groups += [sets.masked_generated[d], sets.masked_real[d]]
        key = {"network": network.digest, "seed": seed, "cap": IC_LPIPS_CAP, "version": 1}
        key["images"] = [[pixel_digest(image) for image in group] for group in groups]
        scores = store.result("lpips-of-sets", key, lambda groups=groups: _lpips_scores(network, groups, seed))
        sheet.add("lpips", scores["lpips"], d)
        sheet.add("lpips_diversity", scores["diversity"], d, FEW_GENERATED)
        _add_clusters(sheet, "ic_lpips", IntraClusterResult(**scores["clusters"]), d)
        if is_masked:
            _add_clusters(sheet, "ic_lpips_masked", IntraClusterResult(**scores["masked"]), d)
    for name in ["lpips", "lpips_diversity", "ic_lpips", *(["ic_lpips_masked"] if is_masked else [])]:
        sheet.add_mean(name)
    if not is_masked:
        sheet.mark_missing("ic_lpips_masked", NO_MASKS)


def _extract(network: Lite0Features | InceptionFeatures, images: Images, store: FeatureStore) -> dict[str, NDArray]:
    return store.features(f"{network.name}-{network.digest[:16]}", list(images), network.columns)


def _cluster(generated: NDArray, references: NDArray, seed: int) -> IntraClusterResult:
    rows = generated.astype(np.float32), references.astype(np.float32)
    return cluster_embeddings(rows[0], rows[1], IC_LPIPS_CAP, "drop", seed)


def _lpips_scores(network: LpipsDistance, groups: list[Images], seed: int) -> dict[str, Any]:
    """Scores of one defect type in one pass over its images. An embedding has megabytes, so only few are in memory."""
    generated, real = groups[:2]
    pairs, to_real = PairwiseMean(), []
    references = network.embed(real)

    def embed(images: Images) -> NDArray[np.float32]:
        rows = network.embed(images)
        pairs.update(rows)
        to_real.append(pairwise_distance(rows, references).mean(1))
        return rows

    clusters = intra_cluster_distance(generated, real, embed, IC_LPIPS_CAP, "drop", seed, lambda _: references)
    masked = None
    if len(groups) == 4:
        masked = intra_cluster_distance(groups[2], groups[3], network.embed, IC_LPIPS_CAP, "drop", seed)._asdict()
    return {
        "lpips": float(np.concatenate(to_real).mean()),
        "diversity": pairs.compute(),
        "clusters": clusters._asdict(),
        "masked": masked,
    }


def _score_masks(sheet: ScoreSheet, sets: ScoredSets) -> None:
    names = ("mask_diversity", "mask_shape_diversity")
    if sets.generated_masks is None:
        for name in names:
            sheet.mark_missing(name, NO_MASKS)
        return
    for d, masks in sets.generated_masks.items():
        if sum(bool(mask.any()) for mask in masks) > 1:
            result = mask_diversity(masks)
            sheet.add(names[0], result.placed, d)
            sheet.add(names[1], result.shape, d)
        else:
            for name in names:
                sheet.mark_missing(name, FEW_MASKS, d)
    for name in names:
        sheet.add_mean(name)


def _add_memorisation(sheet: ScoreSheet, sets: ScoredSets, defect: str, generated: NDArray, real: NDArray) -> None:
    result = memorisation(generated, real)
    sheet.add("memorisation_lite0", result.ratio, defect, NO_UNIT)
    sheet.add("memorisation_copies", result.copies, defect, NO_UNIT)
    images = (sets.generated[defect], sets.real[defect])
    pixels = [side.reshape(len(side), -1).astype(np.float32) for side in images]
    sheet.add("memorisation_pixels", memorisation(*pixels).ratio, defect, NO_UNIT)
    for space, rows in (("features", (generated, real)), ("pixels", pixels)):
        sheet.nearest[defect][space] = _list_pairs(rows, defect, sets.names)


def _add_distances(sheet: ScoreSheet, names: tuple[str, str], features: FeaturePairs, seed: int, suffix: str) -> None:
    """Adds both distances per defect type and pooled, and precision, recall, density and coverage pooled."""
    for d, (generated, real) in features.items():
        _add_two_distances(sheet, names, generated, real, seed, d)
    generated, real = (np.concatenate(side) for side in zip(*features.values(), strict=True))
    _add_two_distances(sheet, names, generated, real, seed, None)
    for name in ("precision", "recall", "density", "coverage"):
        if min(len(generated), len(real)) > 1:
            sheet.add(name + suffix, getattr(precision_recall(real, generated), name))
        else:
            sheet.mark_missing(name + suffix, FEW_IMAGES)


def _add_two_distances(
    sheet: ScoreSheet, names: tuple[str, str], generated: NDArray, real: NDArray, seed: int, defect: str | None
) -> None:
    if min(len(generated), len(real)) < 2:
        for name in names:
            sheet.mark_missing(name, FEW_IMAGES, defect)
        return
    sheet.add(names[0], frechet_distance(generated, real), defect)
    sheet.add(names[1], kernel_distance(generated, real, seed, KERNEL_SUBSETS, KERNEL_SUBSET_SIZE).mean, defect)


def _add_clusters(sheet: ScoreSheet, name: str, result: IntraClusterResult, defect: str) -> None:
    sheet.add(name, result.value, defect, result.reason)


def _list_pairs(rows: Sequence[NDArray], defect: str, names: tuple[Names | None, Names | None]) -> list[dict[str, Any]]:
    def name_of(side: int, index: int) -> str | int:
        names_of_side = names[side]
        return index if names_of_side is None else names_of_side[defect][index]

    return [
        {
            "generated": name_of(1, pair.generated),
            "real": name_of(0, pair.training),
            "ratio": None if pair.ratio is None else six_digits(pair.ratio),
        }
        for pair in nearest_pairs(rows[0], rows[1], count=LISTED_PAIRS)
    ]
