"""IC-LPIPS against the loop over pairs, its variants and its invariances."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defect_core.metrics.distribution_metrics import IntraClusterDistance
from defect_core.metrics.features import LpipsDistance, pairwise_distance
from defect_core.metrics.images import resize_images
from defect_core.metrics.intra_cluster import (
    VARIANTS,
    PairwiseMean,
    Variant,
    cluster_embeddings,
    ic_lpips,
    intra_cluster_distance,
    masked_images,
    mean_pairwise_distance,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*was called before the:UserWarning")  # compute without update


def _mean_embedding(images):
    """A stub distance: squared difference of mean gray."""
    return images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32)


def _gray(values):
    return np.stack([np.full((2, 2, 3), v, np.uint8) for v in values]) if values else np.zeros((0, 2, 2, 3), np.uint8)


def _tensor(values):
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def _mean_of_channels(images):
    return images.float().mean((1, 2, 3))[:, None]


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
def test_it_equals_the_loop_over_pairs_for_any_batches(generated, references, policy, size):
    metric = IntraClusterDistance(_mean_of_channels, _tensor(references), zero_policy=policy)
    for start in range(0, len(generated), size):
        metric.update(_tensor(generated[start : start + size]))
    result = intra_cluster_distance(_gray(generated), _gray(references), _mean_embedding, zero_policy=policy)
    value, expected = metric.compute().item(), _by_pairs(generated, references, policy)
    assert np.isnan(value) if result.value is None else value == pytest.approx(result.value, rel=1e-9)
    assert metric.cluster_sizes.tolist() == result.cluster_sizes
    if not generated:
        assert result.value is None and result.reason == "no generated image"
        return
    assert result.value == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-4))
    assert sum(result.cluster_sizes) == len(generated) and bool(result.reason) == (result.value is None)
    assert result.value == (result.dropped if policy == "drop" else result.zeroed)
    metric.reset()
    assert np.isnan(metric.compute().item()) and not metric.cluster_sizes.any()


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 12), st.just(5)), elements=st.floats(-10, 10, width=32)))
def test_pairwise_mean_equals_the_mean_over_all_pairs(rows):
    pairs = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(rows.astype(np.float64), 2)]
    value = mean_pairwise_distance(rows)
    assert value == (pytest.approx(np.mean(pairs), rel=1e-4, abs=1e-6) if pairs else None)
    parts = PairwiseMean()
    for row in rows:
        parts.update(row[None])
    assert parts.compute() == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9))


def test_the_cap_chooses_the_same_members_in_one_batch_and_in_many():
    rng = np.random.default_rng(0)
    generated, references = rng.normal(size=(90, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    whole = cluster_embeddings(generated, references, 10, "drop", seed=4)
    metric = IntraClusterDistance(lambda rows: rows, references, 10, seed=4)
    for start in range(0, 90, 7):
        metric.forward(generated[start : start + 7])
    assert metric.compute().item() == pytest.approx(whole.value, rel=1e-9)
    assert len(metric.member_embeddings) == 20
    assert whole.value != cluster_embeddings(generated, references, 10, "drop", seed=5).value
    uncapped = cluster_embeddings(generated, references, 90, "drop", seed=4).value
    assert cluster_embeddings(generated, references, 1000, "drop", seed=9).value == pytest.approx(uncapped)
    values = [cluster_embeddings(generated, references, 10, "drop", seed=s).value for s in range(200)]
    assert np.mean(values) == pytest.approx(uncapped, rel=0.03)  # all members are equally likely


def test_copies_of_one_image_score_zero_under_both_policies():
    result = intra_cluster_distance(_gray([7, 7, 7, 200]), _gray([0, 100, 255]), _mean_embedding)
    assert result.value == result.dropped == 0 and result.cluster_sizes == [3, 0, 1]
    lone = intra_cluster_distance(_gray([7, 200]), _gray([0, 255]), _mean_embedding)
    assert lone.value is lone.dropped is None and lone.zeroed == 0


def test_masked_images_are_black_outside_the_mask():
    images = np.random.default_rng(0).integers(1, 255, (3, 6, 6, 3), np.uint8)
    masks = np.zeros((3, 6, 6), bool)
    masks[:, 2:4, 2:4] = True
    masked = masked_images(images, masks)
    assert np.array_equal(masked[masks], images[masks]) and not masked[~masks].any()
    with pytest.raises(ValueError, match="one mask per image"):
        masked_images(images, masks[:, :3])


def test_images_and_masks_of_any_size_are_resized_to_one_size():
    images = [np.zeros((5, 9, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)]
    assert resize_images(images, 4).shape == (2, 4, 4, 3)
    dot = np.zeros((40, 40), bool)
    dot[17, 3] = True
    assert resize_images([dot], 4).sum() == 1
    assert resize_images([], 8).shape == (0, 8, 8, 3)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="expected one of ours, anomalydiffusion, dfmgan, seas"):
        ic_lpips([], [], "draem")
    with pytest.raises(ValueError, match="one side only"):
        ic_lpips(list(_gray([1])), list(_gray([1])), generated_masks=[np.ones((2, 2), bool)])
    with pytest.raises(ValueError, match="cap"):
        IntraClusterDistance(_mean_of_channels, _tensor([1]), cap=1)


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("DEFECTORY_WEIGHTS", ""), "alexnet_features_imagenet.safetensors")),
    reason="needs the weights in DEFECTORY_WEIGHTS",
)
def test_variants_differ_as_their_scripts_do():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (3, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    scenes8 = scenes.astype(np.uint8)
    references = list(scenes8)
    generated = [(scenes[i % 3] + rng.normal(0, 40, scenes[0].shape)).clip(0, 255).astype(np.uint8) for i in range(9)]
    small = {"net": "alex", "image_size": 64}
    right = ic_lpips(generated, references, Variant(**small))
    assert right.cluster_sizes == [3, 3, 3]
    network = LpipsDistance("alex")
    raw, scaled = (torch.from_numpy(np.stack(i)).permute(0, 3, 1, 2).float() for i in (references, generated[:3]))
    with torch.no_grad():
        expected = network.model(scaled / 127.5 - 1, raw).flatten().numpy()  # as two of the public scripts call it
    distance = pairwise_distance(network.embed(np.stack(generated[:3])), network.embed_raw(np.stack(references)))
    np.testing.assert_allclose(distance.diagonal(), expected, rtol=1e-4)
    assert np.all(
        expected > 1.2 * pairwise_distance(network.embed(np.stack(generated[:3])), network.embed(scenes8)).diagonal()
    )
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    masked = ic_lpips(generated, references, Variant(**small), 0, [half] * 9, [half] * 3)
    assert 0 < masked.value != right.value
    assert VARIANTS["dfmgan"].cap == 200 and VARIANTS["seas"].references == "all"
