"""Distances between sets: closed forms, reference libraries, brute force."""

import math

import numpy as np
import pytest

from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.intra_cluster import intra_cluster_distance, mean_pairwise_distance
from defect_core.metrics.neighbours import memorisation, nearest_neighbours


def _with_moments(rng, n, mean, cov):
    """Rows whose sample mean and covariance are exact."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(cov).T + mean


def test_frechet_distance_has_the_closed_form_of_commuting_gaussians():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    s_a, s_b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    a = _with_moments(rng, 50, np.zeros(3), basis * s_a @ basis.T)
    b = _with_moments(rng, 40, np.array([1.0, 2.0, 2.0]), basis * s_b @ basis.T)
    expected = 9.0 + ((np.sqrt(s_a) - np.sqrt(s_b)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [12, 60])
def test_frechet_distance_equals_torchmetrics(n):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 24)), rng.normal(size=(n + 9, 24)) * 1.5 + 0.3
    network = torch.nn.Identity()
    network.num_features = 24
    fid = FrechetInceptionDistance(feature=network)
    fid.update(torch.from_numpy(a), real=True)
    fid.update(torch.from_numpy(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-5)


def test_frechet_distance_is_zero_on_itself_symmetric_and_never_negative():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(9, 300)), rng.normal(size=(7, 300))
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(a[:1], b)


def test_kernel_distance_equals_the_loop_of_the_unbiased_estimate():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)) + 1

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    between = sum(k(x, y) for x in a for y in b) / 36
    assert kernel_distance(a, b, seed=0).mean == pytest.approx(within - 2 * between, rel=1e-9)


def test_kernel_distance_equals_torchmetrics_on_the_whole_sets():
    import torch
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(15, 8)), rng.normal(size=(15, 8)) * 2
    expected = float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b)))
    assert kernel_distance(a, b, seed=0).mean == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_and_grows_with_a_shift():
    rng = np.random.default_rng(4)
    same, far = [], []
    for _ in range(60):
        a, b = rng.normal(size=(20, 8)), rng.normal(size=(15, 8))
        same.append(kernel_distance(a, b, seed=0, subsets=1).mean)
        far.append(kernel_distance(a, b + 1, seed=0, subsets=1).mean)
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error < np.mean(far)


def test_kernel_distance_depends_on_its_seed_and_limits_the_subset_size():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(40, 8)), rng.normal(size=(30, 8))
    first = kernel_distance(a, b, seed=1, subset_size=10)
    assert first == kernel_distance(a, b, seed=1, subset_size=10)
    assert first.mean != kernel_distance(a, b, seed=2, subset_size=10).mean
    assert kernel_distance(a, b, seed=1, subset_size=10_000).subset_size == 30


def test_inception_score_is_one_for_constant_and_k_for_k_classes():
    assert inception_score(np.full((20, 7), 1 / 7)) == pytest.approx(1)
    assert inception_score(np.eye(7)) == pytest.approx(7)
    assert inception_score(np.repeat(np.eye(2), 10, 0)) == pytest.approx(2)
    # each half has one class only
    assert inception_score(np.repeat(np.eye(2), 10, 0), splits=2) == pytest.approx(1)
    with pytest.raises(ValueError, match="N of at least 4"):
        inception_score(np.eye(3), splits=4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics on its memory, torch on the std of one split
def test_inception_score_equals_torchmetrics():
    import torch
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).double() * 2
    score = InceptionScore(feature=_identity(10), splits=1)
    score.update(logits)
    assert inception_score(logits.softmax(1).numpy()) == pytest.approx(float(score.compute()[0]), rel=1e-9)


def _identity(width):
    import torch

    network = torch.nn.Identity()
    network.num_features = width
    return network


def _mean_embedding(images):
    """A stub distance: squared difference of mean gray."""
    return images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32)


def _gray(*values):
    return np.stack([np.full((4, 4, 3), v, np.uint8) for v in values])


def test_intra_cluster_distance_of_known_clusters():
    references = _gray(10, 100, 200)
    generated = _gray(8, 12, 102, 104, 110, 203)
    # cluster 10: {8,12} -> 16; cluster 100: {102,104,110} -> (4+64+36)/3; cluster 200: a single image
    expected = [16, (4 + 64 + 36) / 3]
    result = intra_cluster_distance(generated, references, _mean_embedding)
    assert result.cluster_sizes == [2, 3, 1]
    assert result.value == pytest.approx(np.mean(expected))
    zero = intra_cluster_distance(generated, references, _mean_embedding, zero_policy="zero")
    assert zero.value == pytest.approx(np.sum(expected) / 3)


def test_intra_cluster_distance_cap_depends_on_the_seed():
    generated = _gray(*range(0, 60))
    values = {s: intra_cluster_distance(generated, _gray(30), _mean_embedding, cap=4, seed=s).value for s in range(5)}
    assert len(set(values.values())) > 1
    assert values[3] == intra_cluster_distance(generated, _gray(30), _mean_embedding, cap=4, seed=3).value
    # two images make one pair, whose distance is the square of a whole number
    two = intra_cluster_distance(generated, _gray(30), _mean_embedding, cap=2).value
    assert math.isqrt(round(two)) ** 2 == round(two)


def test_intra_cluster_distance_without_pairs_has_a_reason():
    result = intra_cluster_distance(_gray(1, 200), _gray(0, 255), _mean_embedding)
    assert result.value is None and "two generated" in result.reason
    assert intra_cluster_distance(_gray(1)[:0], _gray(0), _mean_embedding).value is None
    with pytest.raises(ValueError, match="references"):
        intra_cluster_distance(_gray(1), _gray(1)[:0], _mean_embedding)


def test_diversity_is_zero_for_copies():
    assert mean_pairwise_distance(_mean_embedding(_gray(7, 7, 7))) == 0
    assert mean_pairwise_distance(_mean_embedding(_gray(7, 10, 7))) == pytest.approx(6)
    assert mean_pairwise_distance(_mean_embedding(_gray(7))) is None


def test_memorisation_separates_copies_from_new_images():
    rng = np.random.default_rng(5)
    training = rng.normal(size=(12, 40))
    fresh, copies = rng.normal(size=(30, 40)), training[[3, 3, 8]]
    assert nearest_neighbours(copies, training).rows.tolist() == [3, 3, 8]
    assert memorisation(copies, training)[:2] == (0.0, 1.0)
    new = memorisation(fresh, training)
    assert 0.8 < new.ratio < 1.2 and new.copies == 0
    mixed = memorisation(np.concatenate([fresh[:3], copies[:1] + 1e-4]), training)
    assert mixed.copies == 0.25
    assert memorisation(fresh, training[:1]).ratio is None
