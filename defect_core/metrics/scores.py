"""The scores of sets as small objects: `update` with batches of features, `compute`, `reset`.

Each keeps what it is given and calls the pure function of its name on it, so the order of batches does not matter
beyond rounding. Features come from `metrics.features`; any `[N,D]` array will do.
"""

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defect_core.metrics.frechet import KernelDistance, frechet_distance, kernel_distance
from defect_core.metrics.inception_score import inception_score
from defect_core.metrics.mask_diversity import MaskDiversity, mask_diversity
from defect_core.metrics.memorisation import Memorisation, memorisation
from defect_core.metrics.prdc import NEIGHBOURS, PrecisionRecall, precision_recall

Result = TypeVar("Result")


class _TwoSets(Generic[Result]):
    """Collects rows of two sets."""

    def __init__(self) -> None:
        self.reset()

    def update(self, features: ArrayLike, real: bool) -> None:
        """Add rows `[N,D]` to the real or to the generated set."""
        rows = np.asarray(features)
        if rows.ndim != 2:
            raise ValueError(f"features: found shape {rows.shape}; expected [N,D]")
        self._rows[real].append(rows)

    def reset(self) -> None:
        """Forget both sets."""
        self._rows: dict[bool, list[NDArray]] = {True: [], False: []}

    def compute(self) -> Result:
        """The score of the rows seen so far; raises what the pure function raises."""
        raise NotImplementedError

    def _sets(self) -> tuple[NDArray, NDArray]:
        """(real, generated)."""
        sets = [np.concatenate(rows) if rows else np.zeros((0, 1)) for rows in (self._rows[True], self._rows[False])]
        return sets[0], sets[1]


class FrechetScore(_TwoSets[float]):
    """`frechet_distance`: FID where the features are Inception's pool3.

    >>> score = FrechetScore()
    >>> score.update([[0.0], [2.0]], real=True)
    >>> score.update([[3.0], [5.0]], real=False)
    >>> score.compute()
    9.0
    """

    def compute(self) -> float:
        return frechet_distance(*self._sets())


class KernelScore(_TwoSets[KernelDistance]):
    """`kernel_distance`: KID where the features are Inception's pool3."""

    def __init__(self, seed: int = 0, subsets: int = 100, subset_size: int = 1000) -> None:
        super().__init__()
        self.seed, self.subsets, self.subset_size = seed, subsets, subset_size

    def compute(self) -> KernelDistance:
        return kernel_distance(*self._sets(), self.seed, self.subsets, self.subset_size)


class PrecisionRecallScore(_TwoSets[PrecisionRecall]):
    """`precision_recall`, density and coverage.

    >>> score = PrecisionRecallScore(k=1)
    >>> for real in (True, False):
    ...     score.update([[0.0], [1.0], [2.0]], real)
    >>> score.compute()[:2]
    (1.0, 1.0)
    """

    def __init__(self, k: int = NEIGHBOURS) -> None:
        super().__init__()
        self.k = k

    def compute(self) -> PrecisionRecall:
        return precision_recall(*self._sets(), self.k)


class MemorisationScore(_TwoSets[Memorisation]):
    """`memorisation`: the real rows are those that the generator was trained on."""

    def compute(self) -> Memorisation:
        real, generated = self._sets()
        return memorisation(generated, real)


class InceptionScore:
    """`inception_score` of class probabilities.

    >>> score = InceptionScore()
    >>> score.update([[1.0, 0.0]])
    >>> score.update([[0.0, 1.0]])
    >>> score.compute()
    2.0
    """

    def __init__(self, splits: int = 1) -> None:
        self.splits = splits
        self.reset()

    def update(self, probabilities: ArrayLike) -> None:
        """Add rows `[N,K]`."""
        self._rows.append(np.asarray(probabilities))

    def compute(self) -> float:
        """The score of the rows seen so far."""
        return inception_score(np.concatenate(self._rows) if self._rows else np.zeros((0, 1)), self.splits)

    def reset(self) -> None:
        """Forget all rows."""
        self._rows: list[NDArray] = []


class MaskDiversityScore:
    """`mask_diversity` of masks that come in batches, all of one size."""

    def __init__(self) -> None:
        self.reset()

    def update(self, masks: NDArray[np.bool_]) -> None:
        """Add masks, bool `[N,H,W]`."""
        self._masks += list(np.asarray(masks, bool))

    def compute(self) -> MaskDiversity:
        """The diversity of the masks seen so far."""
        return mask_diversity(self._masks)

    def reset(self) -> None:
        """Forget all masks."""
        self._masks: list[NDArray[np.bool_]] = []
