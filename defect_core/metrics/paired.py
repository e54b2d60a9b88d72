"""Difference of a score between two arms, paired by test image, with an interval over test images and seeds.

Model: score of an arm with seed k on a test set T = mean of the arm + seed effect + effect of T + interaction of both.
Seeds and test images are random: another training and another test set would give another difference. The variance of
the difference of the means over seeds is the sum of

    test images: that of the difference over resamples of the test images, which both arms share. The effect of T
        that both arms have in common cancels (Efron and Tibshirani 1993, chapters 6 and 8);
    seeds: s^2/K of each arm with K seeds, with s^2 the sample variance over the seeds, less the part of it that the
        resamples contain already (the interaction).

The seeds of two arms count as independent. If equal seeds are correlated, they are so positively, and the interval is
too wide. So both arms may have different seeds. The bounds are those of Student's t with the degrees of freedom of
Satterthwaite 1946 (in the form of Welch 1947): K-1 for the seeds of each arm, and one less than the number of images of
the rarer class for the test images. Two or three seeds therefore give wide intervals, as they should.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from defect_core.errors import InputError
from defect_core.metrics.image_results import ArmScores

MAX_FACTOR = 100  # no advice beyond a hundred times the test images or the seeds

_PROPORTIONS = ("escape", "overkill", "accuracy", "recall_")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """Candidate minus reference of one score. Variances are those of the difference of the means over the seeds.

    Attributes:
        value: the difference, -1 to 1.
        image_variance: variance over test images, of both arms' means over the present seeds.
        seed_variance: variance over seeds of (candidate, reference), without what `image_variance` contains.
        interaction: part of `image_variance` that more seeds reduce, of (candidate, reference).
        seeds: number of seeds of (candidate, reference), each at least 2.
        images: number of test images of the rarer class, at least 2.
        total_images: number of all test images.
    """

    value: float
    image_variance: float
    seed_variance: tuple[float, float]
    interaction: tuple[float, float]
    seeds: tuple[int, int]
    images: int
    total_images: int

    @property
    def standard_error(self) -> float:
        """Standard error of the difference."""
        return math.sqrt(self._variance(1.0, 0)[0])

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the standard error."""
        return self._variance(1.0, 0)[1]

    def half_width(self, level: float, factor: float = 1.0, more_seeds: int = 0) -> float:
        """Return the distance of a one-sided bound from the difference.

        Args:
            level: probability that the true difference is on the other side, such as 0.95.
            factor: the number of test images is multiplied by it.
            more_seeds: seeds added to both arms.
        """
        variance, degrees = self._variance(factor, more_seeds)
        return float(stdtrit(degrees, level)) * math.sqrt(variance) if variance else 0.0

    def interval(self, level: float = 0.95) -> list[float]:
        """Return the central interval [low, high]."""
        half = self.half_width((1 + level) / 2)
        return [round(self.value - half, 6), round(self.value + half, 6)]

    def images_needed(self, half_width: float, level: float, more_seeds: int = 0) -> int | None:
        """Return how many more test images shorten the one-sided bound to `half_width`, None if no number does.

        The images have the present proportion of defective and normal ones. The number is an estimate from the
        present variances.
        """
        if self.half_width(level, MAX_FACTOR, more_seeds) > half_width:
            return None
        low, high = 1.0, float(MAX_FACTOR)
        while high - low > 0.5 / self.total_images:
            middle = (low + high) / 2
            if self.half_width(level, middle, more_seeds) > half_width:
                low = middle
            else:
                high = middle
        return max(1, math.ceil((high - 1) * self.total_images))

    def seeds_needed(self, half_width: float, level: float) -> int | None:
        """Return how many more seeds of both arms shorten the one-sided bound to `half_width`, None if none do."""
        most = MAX_FACTOR * max(self.seeds)
        return next((m for m in range(1, most) if self.half_width(level, more_seeds=m) <= half_width), None)

    def _variance(self, factor: float, more_seeds: int) -> tuple[float, float]:
        """Return the variance of the difference and its degrees of freedom."""
        parts = []
        common = self.image_variance - sum(self.interaction)
        for own, mixed, count in zip(self.seed_variance, self.interaction, self.seeds, strict=True):
            total = count + more_seeds
            parts.append(((own + mixed / factor) * count / total, total - 1))
        parts.append((max(common, 0.0) / factor, self.images * factor - 1))
        variance = sum(part for part, _ in parts)
        denominator = sum(part * part / degrees for part, degrees in parts)
        return variance, variance * variance / denominator if denominator else float(self.images - 1)


def paired_difference(candidate: ArmScores, reference: ArmScores, score: str) -> PairedDifference:
    """Return the difference of a score between two arms.

    Args:
        candidate: scores of one arm.
        reference: scores of the other arm, on the same test images and with the same resamples.
        score: name of the score; the difference is candidate minus reference.

    Raises:
        InputError: the score is undefined for an arm, the arms have other test images, an arm has a single seed, or
            there are fewer than two test images of the classes that the score needs.
    """
    if not candidate.has_images_of(reference):
        raise InputError("the arms were tested on other images; run the stage segment of both again")
    sides = [_side(arm, score) for arm in (candidate, reference)]
    counts = [int(candidate.label.sum()), int((~candidate.label).sum())]
    images = counts[0] if score.startswith("escape") else counts[1] if score.startswith("overkill") else min(counts)
    if not min(counts):  # Scores of one class alone, such as the accuracy of a classifier of defects.
        images = max(counts)
    if images < 2:
        raise InputError(f"{images} test image of one class; expected at least 2")
    delta = sides[0][1].mean(0) - sides[1][1].mean(0)
    is_defined = np.isfinite(delta)
    if 2 * is_defined.sum() <= len(delta):
        raise InputError(f"{score} is undefined on half of the resamples of the test images")
    # Without an image on which the arms differ the resamples see no variance at all. Agresti and Min 2005 add such
    # images to a difference of two proportions; one is added here.
    unseen = 1 / images**2 if score.startswith(_PROPORTIONS) else 0.0
    # The bootstrap divides by n, not by n - 1 (Efron and Tibshirani 1993, section 6.5).
    correction = images / (images - 1)
    seed_variance, interaction = [], []
    for values, resampled in sides:
        deviation = resampled[:, is_defined]
        deviation = deviation - deviation.mean(1, keepdims=True)
        mixed = float(deviation.var(0, ddof=1).mean()) * correction
        seed_variance.append(max(0.0, float(values.var(ddof=1)) - mixed) / len(values))
        interaction.append(mixed / len(values))
    return PairedDifference(
        value=float(sides[0][0].mean() - sides[1][0].mean()),
        image_variance=float(delta[is_defined].var(ddof=1)) * correction + unseen,
        seed_variance=(seed_variance[0], seed_variance[1]),
        interaction=(interaction[0], interaction[1]),
        seeds=(len(sides[0][0]), len(sides[1][0])),
        images=images,
        total_images=sum(counts),
    )


def _side(arm: ArmScores, score: str) -> tuple[Array, Array]:
    """Return the values `[K]` of a score and its resamples `[K,R]`."""
    values = arm.value.get(score)
    if values is None or not np.isfinite(values).all():
        raise InputError(f"{score} is undefined")
    if len(values) < 2:
        raise InputError("one seed; expected at least 2 for an interval over seeds")
    return values, arm.resampled[score]
