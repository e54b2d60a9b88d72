"""Properties of every set score: order, batches, precision, device, range, degenerate sets."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from score_options import score

from defect_core.errors import InputError
from defect_core.metrics.diversity import mask_diversity
from defect_core.metrics.features import Lite0Features, pairwise_distance
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.intra_cluster import cluster_embeddings, mean_pairwise_distance
from defect_core.metrics.neighbours import memorisation
from defect_core.metrics.prdc import precision_recall

NUMBERS = st.one_of(st.integers(-4, 4).map(float), st.floats(-20, 20, width=32))  # ties are common
ORDER = st.randoms(use_true_random=False)


@st.composite
def two_sets(draw, least=2, equal=False):
    width, first = draw(st.integers(1, 5)), draw(st.integers(least, 9))
    second = first if equal else draw(st.integers(least, 9))
    return tuple(draw(arrays(np.float64, (n, width), elements=NUMBERS)) for n in (first, second))


def _shuffled(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    return rows[order]


def _scale(*sets):
    """The scale of squared distances of these rows."""
    return 1 + max(float(np.square(rows).sum(1).max()) for rows in sets)


@settings(max_examples=80, deadline=None)
@given(two_sets(), ORDER, st.floats(-5, 5))
def test_the_frechet_distance_is_symmetric_and_ignores_order_and_origin(sets, random, shift):
    a, b = sets
    value, near = frechet_distance(a, b), {"abs": 1e-6 * _scale(a, b)}
    assert 0 <= value < np.inf
    assert frechet_distance(_shuffled(a, random), _shuffled(b, random)) == pytest.approx(value, **near)
    assert frechet_distance(b, a) == pytest.approx(value, **near)
    assert frechet_distance(a + shift, b + shift) == pytest.approx(value, **near)
    assert frechet_distance(a, a) == pytest.approx(0, **near)
    assert value >= np.square(a.mean(0) - b.mean(0)).sum() - near["abs"]  # the distance of the means is a lower bound
    exact = [rows.astype(np.float32) for rows in sets]
    assert frechet_distance(*exact) == pytest.approx(value, abs=1e-4 * _scale(a, b))


@settings(max_examples=80, deadline=None)
@given(two_sets(equal=True), ORDER)
def test_the_kernel_distance_of_whole_sets_ignores_the_order(sets, random):
    a, b = sets
    result, cube = kernel_distance(a, b, seed=0), 1e-12 * _scale(a, b) ** 3
    assert result.subset_size == len(a) and result.std == 0
    assert kernel_distance(_shuffled(a, random), _shuffled(b, random), seed=7).mean == pytest.approx(
        result.mean, abs=cube
    )
    assert kernel_distance(b, a, seed=0).mean == pytest.approx(result.mean, abs=cube)
    assert kernel_distance(a, a, seed=0).mean <= cube  # the unbiased estimate has no diagonal in the within-set terms
    constant = np.repeat(a[:1], len(a), 0)
    assert kernel_distance(constant, constant, seed=0).mean == pytest.approx(0, abs=cube)
    assert kernel_distance(a.astype(np.float32), b.astype(np.float32), seed=0).mean == pytest.approx(
        result.mean, rel=1e-4, abs=1e-6 * _scale(a, b) ** 3
    )


@settings(max_examples=80, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-40, 40)), ORDER)
def test_the_inception_score_is_between_one_and_the_number_of_classes(logits, random):
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    value = inception_score(p)
    assert 1 - 1e-9 <= value <= min(p.shape) + 1e-6  # the number of images is a bound, too
    assert inception_score(_shuffled(p, random)) == pytest.approx(value)
    assert inception_score(np.repeat(p, 3, 0)) == pytest.approx(value)
    assert inception_score(np.repeat(p[:1], 4, 0)) == pytest.approx(1)
    assert inception_score(p.astype(np.float32)) == pytest.approx(value, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(two_sets(), ORDER, st.floats(0.1, 50))
def test_memorisation_ignores_order_and_scale_and_finds_copies(sets, random, scale):
    generated, training = sets
    result = memorisation(generated, training)
    again = memorisation(_shuffled(generated, random), _shuffled(training, random))
    assert result.distance >= 0 and again.distance == pytest.approx(result.distance, abs=1e-6)
    assert memorisation(training[:1], training).distance == pytest.approx(0, abs=1e-6)
    if len(np.unique(training, axis=0)) < len(training) or result.ratio is None:
        return
    gaps = np.linalg.norm(training[:, None] - training[None], axis=2)
    assume(gaps[~np.eye(len(training), dtype=bool)].min() > 1e-2)
    assert 0 <= result.copies <= 1 and again.ratio == pytest.approx(result.ratio, rel=1e-4, abs=1e-6)
    assert memorisation(generated * scale, training * scale).ratio == pytest.approx(result.ratio, rel=1e-4, abs=1e-6)
    assert memorisation(training, training).copies == 1


@settings(max_examples=60, deadline=None)
@given(two_sets(least=1), ORDER, st.floats(-5, 5))
def test_intra_cluster_distance_without_a_cap_ignores_order_and_origin(sets, random, shift):
    generated, references = (np.round(rows * 8) / 8 for rows in sets)
    references = np.unique(references, axis=0)  # of two equal references the first has all members
    sides = [generated.astype(np.float32), references.astype(np.float32)]
    result = cluster_embeddings(*sides, cap=100, zero_policy="drop", seed=0)
    near = {"rel": 1e-4, "abs": 1e-4 * _scale(*sides)}
    distance = np.sort(pairwise_distance(*sides), 1)
    if distance.shape[1] > 1:
        assume(np.min(distance[:, 1] - distance[:, 0]) > 1e-3 * _scale(*sides))  # a tie has no defined winner
    again = cluster_embeddings(_shuffled(sides[0], random), sides[1], cap=100, zero_policy="drop", seed=5)
    moved = cluster_embeddings(*(side + np.float32(shift) for side in sides), cap=100, zero_policy="drop", seed=0)
    for other in (again, moved):
        assert other.cluster_sizes == result.cluster_sizes
        assert other.value == (None if result.value is None else pytest.approx(result.value, **near))
    assert sum(result.cluster_sizes) == len(generated) and result.zeroed >= 0
    assert result.dropped is None or result.dropped >= result.zeroed - 1e-9
    same = cluster_embeddings(np.repeat(sides[0][:1], 5, 0), sides[1], cap=3, zero_policy="zero", seed=0)
    assert same.value == 0 and sorted(same.cluster_sizes)[-1] == 5
    diversity = mean_pairwise_distance(sides[0])
    assert diversity is None if len(generated) < 2 else 0 <= diversity <= 4 * _scale(sides[0])


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(2, 6), st.just(4), st.just(5))), ORDER)
def test_mask_diversity_ignores_the_order_and_is_between_zero_and_one(masks, random):
    assume(masks.any((1, 2)).sum() > 1)
    result = mask_diversity(masks)
    assert 0 <= result.placed <= 1 and 0 <= result.shape <= 1 and result.area_spread >= 0
    assert mask_diversity(_shuffled(masks, random)) == pytest.approx(result)
    for same in (np.ones_like(masks), np.repeat(masks[masks.any((1, 2))][:1], 3, 0)):
        assert mask_diversity(same) == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_scores_of_too_few_images_raise_or_are_none(rows):
    few, enough = np.zeros((rows, 3)), np.arange(12.0).reshape(4, 3)
    for call in (frechet_distance, lambda a, b: kernel_distance(a, b, 0), precision_recall):
        for pair in ((few, enough), (enough, few)):
            with pytest.raises(ValueError, match="two rows"):
                call(*pair)
    with pytest.raises(ValueError, match="expected at least two"):
        mask_diversity(np.ones((rows, 4, 4), bool))
    assert mean_pairwise_distance(few.astype(np.float32)) is None
    clusters = cluster_embeddings(few.astype(np.float32), np.zeros((1, 3), np.float32), 50, "drop", 0)
    assert clusters.value is None and clusters.reason
    if rows:
        assert inception_score([[0.5, 0.5]]) == 1 and memorisation(few, enough).ratio is not None
    for splits, message in ((0, "splits"), (rows + 1, "probabilities")):
        with pytest.raises(ValueError, match=message):
            inception_score(np.full((rows, 2), 0.5), splits)


# the networks


@pytest.fixture(scope="module")
def lite0():
    return Lite0Features()


def _pictures(seed, count, side=48):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (count, side // 8, side // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 7), ORDER)
def test_features_do_not_depend_on_batch_or_order(lite0, size, random):
    images = _pictures(0, 6)
    order = list(range(6))
    random.shuffle(order)
    whole, parts = lite0.extract(images, 6), lite0.extract(images[order], size)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(b, a[order], rtol=1e-3, atol=1e-4)


def test_single_precision_is_enough_for_the_features(lite0):
    images = np.concatenate([_pictures(1, 3), np.full((1, 48, 48, 3), 200, np.uint8)])
    single = lite0.extract(images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    double = Lite0Features()
    double.model.double()
    with torch.no_grad():
        pooled, probabilities, embedding = (part.numpy() for part in double._forward(tensor.double()))
    np.testing.assert_allclose(single.pooled, pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(single.probabilities, probabilities, rtol=1e-3, atol=1e-6)
    distance = [pairwise_distance(rows.astype(np.float64)) for rows in (single.embedding, embedding)]
    np.testing.assert_allclose(*distance, rtol=1e-4, atol=1e-6)
    assert frechet_distance(single.pooled, pooled) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device: no CUDA device here")
def test_scores_on_cpu_and_cuda_are_equal():
    real, generated = {"dent": _pictures(2, 5)}, {"dent": _pictures(3, 6)}
    sheets = [
        score(real, generated, image_size=48, device=device, lpips_net="alex", published_networks=True)
        for device in ("cpu", "cuda")
    ]
    one, other = (sheet["scores"]["pooled"] for sheet in sheets)
    assert other == {name: pytest.approx(value, rel=1e-2, abs=1e-4) for name, value in one.items()}


def test_constant_images_have_finite_scores_or_reasons():
    black, white = np.zeros((3, 48, 48, 3), np.uint8), np.full((3, 48, 48, 3), 255, np.uint8)
    full, none = np.ones((3, 48, 48), bool), np.zeros((3, 48, 48), bool)
    for real, generated, masks in ((black, black, full), (black, white, full), (white, black, none)):
        result = score({"dent": real}, {"dent": generated}, {"dent": masks}, {"dent": masks}, image_size=48)
        scores = result["scores"]["pooled"]
        assert all(np.isfinite(value) for value in scores.values()) and all(result["missing"].values())
        assert scores["diversity"] == 0 and scores["score_lite0"] == pytest.approx(1, abs=1e-6)
        assert ("mask_diversity" in scores) == masks.any()
        assert (
            scores["frechet_lite0"] == pytest.approx(0, abs=1e-6) if real is generated else scores["frechet_lite0"] > 1
        )
        assert {"memorisation_lite0", "memorisation_pixels"} <= set(result["missing"])  # no unit: all real are equal
    with pytest.raises(InputError, match="no generated image"):
        score({"dent": black}, {"dent": black[:0]})
