"""Inception Score: whether each image has a clear class and the set has many classes."""

import numpy as np
from numpy.typing import ArrayLike


def inception_score(probabilities: ArrayLike, splits: int = 1) -> float:
    """Returns exp of the mean KL divergence of p(y|x) from p(y), averaged over `splits` equal parts.

    The range is 1 (all images have the same class distribution) to the number of classes. The classes are those of
    ImageNet, so the score of defect images measures variety only. Source: Salimans et al. 2016.

    Args:
        probabilities: `[N,K]`, rows sum to 1.
        splits: number of consecutive parts. Part i begins at floor(i N / splits), as in torch-fidelity. Shuffle the
            rows before.

    Raises:
        ValueError: fewer rows than splits, or less than one split.

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
        # A probability of zero contributes nothing to the divergence.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))
