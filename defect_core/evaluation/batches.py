"""What the training batches of all downstream models have in common: fractions, order of images, validation part."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from defect_core.settings import POOLED

T = TypeVar("T")

# Two pairs' worth of real images per defect type, and at most this fraction. Measured on MVTec AD `screw` and
# Magnetic-Tile with 2 to 25 images of a type (docs/research/measurements.md).
WORTH_OF_SYNTHETIC = 2
MAX_AUTO_FRACTION = 1 / 3
# Keeps a sum such as 3 * (1/3), which may round to just below 1, from losing a slot.
ROUNDING_MARGIN = 1e-9


def compute_synthetic_fraction(fraction: float | str, n_real: int, n_synthetic: int) -> float:
    """Return the fraction of the defect slots of a batch, 0 to 1, that goes to synthetic images.

    Args:
        fraction: 0 to 1, or `pooled`: the fraction of all defect images that is synthetic.
        n_real: number of real training images with a defect.
        n_synthetic: number of synthetic images.
    """
    if not n_synthetic or not n_real:
        return 1.0 if n_synthetic else 0.0
    return n_synthetic / (n_real + n_synthetic) if fraction == POOLED else float(fraction)


def auto_synthetic_fraction(real_per_defect: float) -> float:
    """Return the synthetic fraction of `synthetic_fraction: auto`: min(1/3, 2 / (2 + n)).

    The synthetic images of a defect type count as two more real images of it. This rule is not from a paper.

    Args:
        real_per_defect: n, the mean number of real training images of a defect type, 0 or more.
    """
    return min(MAX_AUTO_FRACTION, WORTH_OF_SYNTHETIC / (WORTH_OF_SYNTHETIC + real_per_defect))


def count_synthetic(per_batch: float, step: int) -> int:
    """Return how many slots of one batch are synthetic; on average exactly `per_batch`.

    Args:
        per_batch: mean number of synthetic images in a batch.
        step: number of the batch, from 0.
    """
    return int((step + 1) * per_batch + ROUNDING_MARGIN) - int(step * per_batch + ROUNDING_MARGIN)


def cycle_shuffled(values: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """Yield all values in random order, again and again, each time in a new order; nothing if there are none."""
    while values:
        yield from (values[i] for i in rng.permutation(len(values)).tolist())


def hold_out(samples: Sequence[T], fraction: float) -> tuple[list[T], list[T]]:
    """Split training samples into a training part and a validation part.

    The held-out samples are evenly spaced, so that samples in the order of their defect types are stratified.

    Args:
        samples: training samples.
        fraction: fraction to hold out, rounded down; at least one sample stays in the training part.
    """
    count = int(len(samples) * fraction)
    count = min(count, len(samples) - 1) if samples else 0
    held = {(2 * i + 1) * len(samples) // (2 * count) for i in range(count)}
    return [s for i, s in enumerate(samples) if i not in held], [samples[i] for i in sorted(held)]
