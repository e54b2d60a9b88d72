"""IC-LPIPS against the loop over pairs, its variants, and what it must not depend on."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defect_core.metrics.features import LpipsDistance, pairwise_distance
from defect_core.metrics.ic_lpips import (
    VARIANTS,
    IntraClusterScore,
    Spread,
    Variant,
    cluster_embeddings,
    ic_lpips,
    intra_cluster_distance,
    masked_images,
    mean_pairwise_distance,
)
from defect_core.metrics.images import resize_images


def _mean_embedding(images):
    """A stub distance: squared difference of mean grey."""
    return images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32)


def _grey(values):
    return np.stack([np.full((2, 2, 3), v, np.uint8) for v in values])


def _by_pairs(generated, references, policy):
    """The definition, one pair at a time, without a cap."""
    clusters = {k: [] for k in range(len(references))}
    for value in generated:
        clusters[int(np.argmin([(float(value) - float(r)) ** 2 for r in references]))].append(float(value))
    means = []
    for members in clusters.values():
        pairs = [(a - b) ** 2 for a, b in itertools.combinations(members, 2)]
        if pairs or policy == "zero":
            means.append(np.mean(pairs) if pairs else 0.0)
    return np.mean(means) if means else None


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 255), max_size=25),
    st.lists(st.integers(0, 255), min_size=1, max_size=6, unique=True),
    st.sampled_from(["drop", "zero"]),
    st.integers(1, 9),
)
def test_it_equals_the_loop_over_pairs_whatever_the_batches(made, references, policy, size):
    score = IntraClusterScore(_mean_embedding, _grey(references), zero_policy=policy)
    for start in range(0, len(made), size):
        score.update(_grey(made[start : start + size]))
    result, expected = score.compute(), _by_pairs(made, references, policy)
    if not made:
        assert result.value is None and result.reason == "no generated image"
        return
    assert result.value == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-4))
    assert sum(result.cluster_sizes) == len(made) and bool(result.reason) == (result.value is None)
    assert result.value == (result.dropped if policy == "drop" else result.zeroed)
    score.reset()
    assert score.compute().cluster_sizes == [0] * len(references)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 12), st.just(5)), elements=st.floats(-10, 10, width=32)))
def test_spread_equals_the_mean_over_all_pairs(rows):
    pairs = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(rows.astype(np.float64), 2)]
    value = mean_pairwise_distance(rows)
    assert value == (pytest.approx(np.mean(pairs), rel=1e-4, abs=1e-6) if pairs else None)
    parts = Spread()
    for row in rows:
        parts.update(row[None])
    assert parts.compute() == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9))


def test_the_cap_draws_the_same_members_in_one_batch_and_in_many():
    rng = np.random.default_rng(0)
    made, references = rng.normal(size=(90, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    whole = cluster_embeddings(made, references, 10, "drop", seed=4)
    score = IntraClusterScore(lambda rows: rows, references, 10, seed=4)
    for start in range(0, 90, 7):
        score.update(made[start : start + 7])
    assert score.compute().value == pytest.approx(whole.value, rel=1e-9)
    assert whole.value != cluster_embeddings(made, references, 10, "drop", seed=5).value
    uncapped = cluster_embeddings(made, references, 90, "drop", seed=4).value
    assert cluster_embeddings(made, references, 1000, "drop", seed=9).value == pytest.approx(uncapped)
    draws = [cluster_embeddings(made, references, 10, "drop", seed=s).value for s in range(200)]
    assert np.mean(draws) == pytest.approx(uncapped, rel=0.03)  # every member is as likely as any other


def test_copies_of_one_image_score_zero_and_both_policies_are_reported():
    result = intra_cluster_distance(_grey([7, 7, 7, 200]), _grey([0, 100, 255]), _mean_embedding)
    assert result.value == result.dropped == 0 and result.cluster_sizes == [3, 0, 1]
    lone = intra_cluster_distance(_grey([7, 200]), _grey([0, 255]), _mean_embedding)
    assert lone.value is lone.dropped is None and lone.zeroed == 0


def test_masked_images_are_black_outside_and_compare_defects_only():
    images = np.random.default_rng(0).integers(1, 255, (3, 6, 6, 3), np.uint8)
    masks = np.zeros((3, 6, 6), bool)
    masks[:, 2:4, 2:4] = True
    masked = masked_images(images, masks)
    assert np.array_equal(masked[masks], images[masks]) and not masked[~masks].any()
    with pytest.raises(ValueError, match="one mask per image"):
        masked_images(images, masks[:, :3])


def test_images_and_masks_of_any_size_come_to_one_size():
    images = [np.zeros((5, 9, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)]
    assert resize_images(images, 4).shape == (2, 4, 4, 3)
    dot = np.zeros((40, 40), bool)
    dot[17, 3] = True
    assert resize_images([dot], 4).sum() == 1
    assert resize_images([], 8).shape == (0, 8, 8, 3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="expected one of ours, anomalydiffusion, dfmgan, seas"):
        ic_lpips([], [], "draem")
    with pytest.raises(ValueError, match="one side only"):
        ic_lpips(list(_grey([1])), list(_grey([1])), generated_masks=[np.ones((2, 2), bool)])
    with pytest.raises(ValueError, match="cap"):
        IntraClusterScore(_mean_embedding, _grey([1]), cap=1)


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("DEFECTORY_WEIGHTS", ""), "alexnet_features_imagenet.safetensors")),
    reason="needs the weights in DEFECTORY_WEIGHTS",
)
def test_variants_differ_where_their_scripts_do():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (3, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    scenes8 = scenes.astype(np.uint8)
    references = list(scenes8)
    made = [(scenes[i % 3] + rng.normal(0, 40, scenes[0].shape)).clip(0, 255).astype(np.uint8) for i in range(9)]
    small = {"net": "alex", "image_size": 64}
    right = ic_lpips(made, references, Variant(**small))
    assert right.cluster_sizes == [3, 3, 3]
    network = LpipsDistance("alex")
    raw, scaled = (torch.from_numpy(np.stack(i)).permute(0, 3, 1, 2).float() for i in (references, made[:3]))
    with torch.no_grad():
        expected = network.model(scaled / 127.5 - 1, raw).flatten().numpy()  # as two of the public scripts call it
    distance = pairwise_distance(network.embed(np.stack(made[:3])), network.embed_raw(np.stack(references)))
    np.testing.assert_allclose(distance.diagonal(), expected, rtol=1e-4)
    assert np.all(
        expected > 1.2 * pairwise_distance(network.embed(np.stack(made[:3])), network.embed(scenes8)).diagonal()
    )
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    masked = ic_lpips(made, references, Variant(**small), 0, [half] * 9, [half] * 3)
    assert 0 < masked.value != right.value
    assert VARIANTS["dfmgan"].cap == 200 and VARIANTS["seas"].references == "all"
