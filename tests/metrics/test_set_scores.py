"""Precision, recall, density and coverage, mask diversity, nearest pairs, and the feature store."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defect_core.metrics.diversity import mask_diversity
from defect_core.metrics.neighbours import memorisation, nearest_pairs
from defect_core.metrics.prdc import precision_recall
from defect_core.metrics.store import FeatureStore


def _sets(least=2):
    rows = st.integers(least, 12)
    return st.integers(1, 3).flatmap(
        lambda d: st.tuples(*(rows.flatmap(lambda n: arrays(np.int64, (n, d), elements=st.integers(-6, 6))),) * 2)
    )


def _by_loops(real, generated, k):
    k = min(k, len(real) - 1, len(generated) - 1)

    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    in_real = np.array([[np.linalg.norm(m - r) <= radius(real, i) for m in generated] for i, r in enumerate(real)])
    in_generated = np.array(
        [[np.linalg.norm(m - r) <= radius(generated, j) for j, m in enumerate(generated)] for r in real]
    )
    return (
        in_real.any(0).mean(),
        in_generated.any(1).mean(),
        in_real.sum() / (k * len(generated)),
        in_real.any(1).mean(),
        k,
    )


@settings(max_examples=80, deadline=None)
@given(_sets(), st.integers(1, 6))
def test_precision_recall_equals_the_loops_and_ignores_the_order(sets, k):
    real, generated = sets
    result = precision_recall(real, generated, k)
    assert tuple(result) == pytest.approx(_by_loops(real, generated, k))
    assert tuple(precision_recall(real[::-1], generated[::-1], k)) == pytest.approx(tuple(result))
    assert all(0 <= value <= 1 for value in (result.precision, result.recall, result.coverage)) and result.density >= 0


def test_precision_recall_shows_mode_collapse_and_equal_sets_score_one():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 8))
    assert precision_recall(real, real)[:2] == (1, 1) and precision_recall(real, real).coverage == 1
    collapsed = precision_recall(real, real[:1] + 0.05 * rng.normal(size=(200, 8)))
    assert collapsed.precision > 0.9 and collapsed.recall < 0.05 and collapsed.coverage < 0.3
    wide = precision_recall(real, rng.normal(size=(200, 8)) * 4)
    assert wide.recall > 0.9 and wide.precision < 0.3
    for bad in ((real[:1], real), (real, real[:, :3])):
        with pytest.raises(ValueError, match="two rows"):
            precision_recall(*bad)


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(0, 6), st.just(5), st.just(6))))
def test_mask_diversity_equals_the_loop_over_pairs(masks):
    defective = [m for m in masks if m.any()]
    if len(defective) < 2:
        with pytest.raises(ValueError, match="two"):
            mask_diversity(masks)
        return
    pairs = [1 - (a & b).sum() / (a | b).sum() for a, b in itertools.combinations(defective, 2)]
    result = mask_diversity(masks)
    assert result.placed == pytest.approx(np.mean(pairs), abs=1e-6) and 0 <= result.shape <= 1


def test_mask_shape_diversity_ignores_the_position():
    masks = np.zeros((3, 30, 30), bool)
    masks[0, 2:6, 3:9] = masks[1, 20:24, 15:21] = masks[2, 10:14, 0:6] = True
    result = mask_diversity(masks)
    assert result.placed == 1 and result.shape == 0 and result.area_spread == 0


def test_nearest_pairs_begin_with_the_copies():
    rng = np.random.default_rng(1)
    training, generated = rng.normal(size=(6, 10)), rng.normal(size=(5, 10))
    generated[3] = training[4] + 1e-6
    pairs = nearest_pairs(generated, training, 2)
    assert len(pairs) == 2 and pairs[0][:2] == (3, 4) and pairs[0].ratio < 1e-5 < pairs[1].ratio
    assert np.median([p.ratio for p in nearest_pairs(generated, training, 5)]) == pytest.approx(
        memorisation(generated, training).ratio
    )
    assert nearest_pairs(generated, training[:1])[0].ratio is None


def _image(value):
    return np.full((4, 4, 3), value, np.uint8)


class _Network:
    def __init__(self):
        self.batches = []

    def columns(self, images):
        self.batches.append(len(images))
        mean = images.reshape(len(images), -1).mean(1, dtype=np.float32)
        return {"mean": mean[:, None], "half": mean.astype(np.float16)}


def test_a_network_processes_each_image_once_over_several_runs(tmp_path):
    network = _Network()
    first = FeatureStore(tmp_path).features("net-1", [_image(v) for v in (3, 5, 3)], network.columns)
    assert first["mean"].tolist() == [[3], [5], [3]] and network.batches == [2]
    again = FeatureStore(tmp_path)
    later = again.features("net-1", [_image(v) for v in (5, 9, 3)], network.columns)
    assert later["mean"].tolist() == [[5], [9], [3]] and network.batches == [2, 1] and again.computed == 1
    assert later["half"].dtype == np.float16
    FeatureStore(tmp_path).features("net-2", [_image(5)], network.columns)
    assert network.batches == [2, 1, 1]  # the features of another network are separate
    FeatureStore().features("net-1", [_image(5)], network.columns)
    assert network.batches == [2, 1, 1, 1]  # without a folder nothing is stored
    assert FeatureStore(tmp_path).features("net-1", [], network.columns) == {}


def test_many_files_are_merged_and_a_damaged_file_is_computed_again(tmp_path):
    network = _Network()
    for value in range(60):
        FeatureStore(tmp_path).features("net", [_image(value)], network.columns)
    files = sorted((tmp_path / "net").iterdir())
    assert len(files) <= 25 and sum(network.batches) == 60
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    whole = FeatureStore(tmp_path).features("net", [_image(v) for v in range(60)], network.columns)
    assert whole["mean"][:, 0].tolist() == list(range(60)) and sum(network.batches) == 120


def test_a_result_is_stored_under_its_key(tmp_path):
    store, calls = FeatureStore(tmp_path), []

    def compute():
        calls.append(1)
        return {"value": 0.1 + 0.2}

    assert store.result("sets", {"images": ["a"]}, compute) == store.result("sets", {"images": ["a"]}, compute)
    assert len(calls) == 1
    store.result("sets", {"images": ["b"]}, compute)
    assert len(calls) == 2
    for file in (tmp_path / "sets").iterdir():
        file.write_text("{")
    assert store.result("sets", {"images": ["a"]}, compute) == {"value": 0.1 + 0.2} and len(calls) == 3
