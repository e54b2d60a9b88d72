"""Test results of one arm for paired comparisons, in two safetensors files with equal bytes for equal results.

`test_scores.safetensors` has the scores of every seed on the test set and on its bootstrap resamples. Two arms with the
same test images have the same resamples, so their difference is paired by image (see `paired`).
`test_tables.safetensors` has what every image contributes to the scores, from which other resamples can be computed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from defect_core.data.files import write_bytes
from defect_core.errors import InputError
from defect_core.metrics.bootstrap import RESAMPLES, ImageTables, bootstrap_samples, bootstrap_weights

SCORES_FILE = "test_scores.safetensors"
TABLES_FILE = "test_tables.safetensors"
_COUNTS = ("positive", "negative", "regions", "both", "either")  # whole numbers, stored as int32

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ArmScores:
    """Scores of one arm for K seeds on N test images.

    Attributes:
        images: names of the test images.
        label: whether each image is defective `[N]`.
        seeds: the seeds of the downstream model.
        value: by score, its value for each seed `[K]`, NaN where undefined.
        resampled: by score, its value for each seed on each resample of the test images `[K,R]`, NaN where undefined.
    """

    images: tuple[str, ...]
    label: NDArray[np.bool_]
    seeds: tuple[int, ...]
    value: dict[str, Array]
    resampled: dict[str, Array]

    def has_images_of(self, other: "ArmScores") -> bool:
        """Return whether two arms have the same test images and resamples, so that their differences are paired."""
        shapes = [next((values.shape[1] for values in side.resampled.values()), 0) for side in (self, other)]
        return self.images == other.images and np.array_equal(self.label, other.label) and shapes[0] == shapes[1]


def make_arm_scores(
    images: Sequence[str],
    seeds: Sequence[int],
    tables: Sequence[ImageTables],
    per_seed: Sequence[Mapping[str, object]],
    base_seed: int,
    thresholds: Mapping[str, Sequence[float]] | None = None,
    resamples: int = RESAMPLES,
) -> ArmScores:
    """Return the scores of an arm of a segmenter.

    Args:
        images: names of the test images.
        seeds: the seeds.
        tables: one per seed, see `bootstrap.image_tables`.
        per_seed: for each seed its exact scores by name.
        base_seed: seed of the resampling; equal for all arms.
        thresholds: by target overkill, such as "0.01", the threshold of the image score of each seed. An image with a
            higher score is rejected. It adds the scores `escape@<target>` (fraction of the defective images that are
            not rejected) and `overkill@<target>` (fraction of the normal images that are rejected), where they have
            images.
        resamples: number of resamples.
    """
    label = tables[0].label
    resampled = bootstrap_samples(tables, base_seed, resamples)
    value = {name: np.array([_number(scores.get(name)) for scores in per_seed]) for name in resampled}
    weights = bootstrap_weights(label, base_seed, resamples)
    for target, limits in (thresholds or {}).items():
        rejected = np.stack([table.score > limit for table, limit in zip(tables, limits, strict=True)])
        for name, wrong, chosen in (("escape", ~rejected, label), ("overkill", rejected, ~label)):
            if chosen.any():
                value[f"{name}@{target}"] = wrong[:, chosen].mean(1)
                resampled[f"{name}@{target}"] = wrong[:, chosen] @ weights[:, chosen].T / chosen.sum()
    return ArmScores(tuple(images), label, tuple(seeds), value, resampled)


def average_arm_scores(parts: Mapping[str, ArmScores]) -> ArmScores:
    """Return the mean over products of the scores of one model; test images are resampled within each product.

    Args:
        parts: by product; all with the same seeds. Only scores that all products have are averaged.
    """
    first, *others = parts.values()
    names = [name for name in first.value if all(name in other.value for other in others)]
    return ArmScores(
        tuple(f"{product}/{image}" for product, part in parts.items() for image in part.images),
        np.concatenate([part.label for part in parts.values()]),
        first.seeds,
        {name: np.mean([part.value[name] for part in parts.values()], axis=0) for name in names},
        {name: np.mean([part.resampled[name] for part in parts.values()], axis=0) for name in names},
    )


def save_arm_scores(scores: ArmScores, file: Path) -> None:
    """Write `test_scores.safetensors`; the same scores give the same bytes."""
    tensors: dict[str, NDArray] = {"label": scores.label.astype(np.uint8), "seeds": np.array(scores.seeds, np.int64)}
    for name, values in scores.value.items():
        tensors[f"value/{name}"] = values.astype(np.float64)
        tensors[f"resampled/{name}"] = scores.resampled[name].astype(np.float32)
    write_bytes(file, save(tensors, {"images": json.dumps(scores.images)}))


def load_arm_scores(source: Path) -> ArmScores:
    """Return what `save_arm_scores` wrote.

    Raises:
        InputError: the file is missing or of another kind.
    """
    try:
        with safe_open(source, "np") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not iterable)
            images = tuple(json.loads(stored.metadata()["images"]))
        value = {name.partition("/")[2]: array for name, array in tensors.items() if name.startswith("value/")}
        resampled = {name: tensors[f"resampled/{name}"].astype(np.float64) for name in value}
        seeds = tuple(int(seed) for seed in tensors["seeds"])
        return ArmScores(images, tensors["label"].astype(bool), seeds, value, resampled)
    except FileNotFoundError:
        raise InputError(f"{source.name}: missing in {source.parent.name}; run the stage segment again") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source.name}: not readable ({' '.join(str(error).split())[:120]})") from None


def save_tables(tables: Sequence[ImageTables], images: Sequence[str], seeds: Sequence[int], file: Path) -> None:
    """Write `test_tables.safetensors`: the contributions of every image for every seed.

    Args:
        tables: one per seed.
        images: names of the test images.
        seeds: the seeds.
        file: the file to write.
    """
    tensors: dict[str, NDArray] = {"label": tables[0].label.astype(np.uint8), "seeds": np.array(seeds, np.int64)}
    for seed, table in zip(seeds, tables, strict=True):
        for name in (*_COUNTS, "overlap", "score"):
            kind = np.int32 if name in _COUNTS else np.float32 if name == "overlap" else np.float64
            tensors[f"{seed}/{name}"] = np.ascontiguousarray(getattr(table, name), kind)
    write_bytes(file, save(tensors, {"images": json.dumps(list(images))}))


def load_tables(file: Path) -> tuple[list[ImageTables], list[str]]:
    """Return what `save_tables` wrote: one table per seed, in the order of the seeds, and the names of the images."""
    with safe_open(file, "np") as stored:
        images = json.loads(stored.metadata()["images"])
        seeds = stored.get_tensor("seeds").tolist()
        label = stored.get_tensor("label").astype(bool)
        names = ImageTables._fields[:-1]
        rows = [[stored.get_tensor(f"{seed}/{name}").astype(np.float64) for name in names] for seed in seeds]
    return [ImageTables._make([*row, label]) for row in rows], images


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
