"""Inception Score: are the images each of one class, and of many classes together?"""

import numpy as np
from numpy.typing import ArrayLike


def inception_score(probabilities: ArrayLike, splits: int = 1) -> float:
    """exp of the mean Kullback-Leibler divergence of p(y|x) from p(y), averaged over `splits` equal parts.

    1 when all images have the same class distribution, at most the number of classes. Source: Salimans et al.
    2016. The classes are ImageNet's: on defect images the score speaks of variety, not of being right.

    Args:
        probabilities: `[N,K]`, rows sum to 1.
        splits: consecutive parts of the images, part i from floor(i N / splits) as torch-fidelity cuts them; shuffle
            them beforehand.

    Raises:
        ValueError: no rows, fewer rows than splits, or no split.

    >>> inception_score([[1.0, 0.0], [0.0, 1.0]])
    2.0
    >>> inception_score([[0.5, 0.5], [0.5, 0.5]])
    1.0
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if splits < 1:
        raise ValueError(f"splits: found {splits}; expected at least 1")
    if p.ndim != 2 or len(p) < splits:
        raise ValueError(f"probabilities: found shape {p.shape}; expected [N,K] with N of at least {splits}")
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        marginal = part.mean(0, keepdims=True)
        # 0 * log(0 / q) is 0
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))
