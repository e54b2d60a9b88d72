"""Every score against an independent implementation on random and degenerate input, to 1e-4 or better.

FID, KID, IS, precision and recall: torch-fidelity. LPIPS and IC-LPIPS: the lpips package, pair by pair. Detection
scores and nearest neighbours: scikit-learn. Published networks read the same weights on both sides. More tests of
localisation are in test_localisation*.py, of IC-LPIPS on a stub distance in test_intra_cluster.py.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from score_options import score
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from defect_core.metrics.features import InceptionFeatures, lpips_network
from defect_core.metrics.frechet import frechet_distance, kernel_distance
from defect_core.metrics.inception import inception_score
from defect_core.metrics.intra_cluster import Variant, ic_lpips
from defect_core.metrics.localisation import localisation_scores
from defect_core.metrics.neighbours import nearest_neighbours
from defect_core.metrics.prdc import precision_recall

TOLERANCE = 1e-4
WEIGHTS = Path(os.environ.get("DEFECTORY_WEIGHTS", ""))
INCEPTION, ALEXNET = InceptionFeatures.file, "alexnet_features_imagenet.safetensors"


def _needs(file):
    exists = bool(os.environ.get("DEFECTORY_WEIGHTS")) and (WEIGHTS / file).is_file()
    return pytest.mark.skipif(not exists, reason=f"needs {file} in DEFECTORY_WEIGHTS")


def _near(value):
    return pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)


def _feature_sets():
    """Two sets `[N,D]` by name, with difficult features."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(30, 12)), rng.normal(size=(30, 12)) * 1.7 + 0.4
    few = rng.normal(size=(6, 40)), rng.normal(size=(6, 40)) + 0.5
    return {
        "random": plain,
        "fewer images than dimensions": few,
        "identical": (plain[0], plain[0][::-1]),
        "one image repeated": (np.repeat(few[0][:1], 8, 0), np.repeat(few[1][:1], 8, 0)),
        "one set constant": (plain[0], np.repeat(plain[1][:1], 30, 0)),
        "copies": (np.repeat(plain[0][:3], 10, 0), plain[1]),
        "one dimension": (plain[0][:, :1], plain[1][:, :1]),
        "dead dimensions": (plain[0] * (np.arange(12) > 8), plain[1] * (np.arange(12) > 8)),
        "all zero": (np.zeros((5, 7)), np.zeros((5, 7))),
        "two images": (plain[0][:2], plain[1][:2]),
        "far from the origin": (plain[0] + 50, plain[1] + 50),
    }


@pytest.mark.parametrize("kind", _feature_sets())
def test_frechet_and_kernel_distance_equal_torch_fidelity(kind):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = (np.ascontiguousarray(side, np.float64) for side in _feature_sets()[kind])
    tensors = [torch.from_numpy(side) for side in (a, b)]
    if a.shape[1] > 1:  # torch-fidelity computes no covariance of one dimension
        fid = fid_statistics_to_metric(*(fid_features_to_statistics(side) for side in tensors), verbose=False)
        assert frechet_distance(a, b) == _near(fid["frechet_inception_distance"])
    kid = kid_features_to_metric(*tensors, kid_subset_size=len(a), kid_subsets=1, verbose=False)
    assert kernel_distance(a, b, seed=3).mean == _near(kid["kernel_inception_distance_mean"])


def test_kernel_distance_of_subsets_equals_torch_fidelity_within_its_error():
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(60, 16)), rng.normal(size=(45, 16)) + 0.4
    theirs = kid_features_to_metric(
        *(torch.from_numpy(side) for side in (a, b)), kid_subset_size=20, kid_subsets=400, verbose=False
    )
    ours = kernel_distance(a, b, seed=0, subsets=400, subset_size=20)
    error = theirs["kernel_inception_distance_std"] / 20  # of a mean over 400 subsets
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=4 * error)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.2)
    assert ours.mean > 20 * error


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 23), st.integers(1, 9)), elements=st.floats(-30, 30)),
    st.integers(1, 12),
)
def test_inception_score_equals_torch_fidelity_for_any_splits(logits, splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    splits = min(splits, len(logits))
    tensor = torch.from_numpy(logits)
    theirs = isc_features_to_metric(tensor, splits, shuffle=False)["inception_score_mean"]
    assert inception_score(tensor.softmax(1).numpy(), splits) == _near(theirs)


@pytest.mark.parametrize("kind", ["random", "fewer images than dimensions", "one dimension"])
def test_precision_and_recall_equal_torch_fidelity(kind):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = (np.ascontiguousarray(side) for side in _feature_sets()[kind])
    theirs = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, save_cpu_ram=False, verbose=False
    )
    ours = precision_recall(real, generated, k=3)
    assert (ours.precision, ours.recall) == (_near(float(theirs["precision"])), _near(float(theirs["recall"])))


@pytest.mark.parametrize("kind", ["random", "copies", "identical", "one image repeated"])
def test_nearest_neighbours_equal_scikit_learn(kind):
    training, generated = _feature_sets()[kind]
    distance, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training).kneighbors(generated)
    np.testing.assert_allclose(nearest_neighbours(generated, training).distance, distance[:, 0], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (5, 4, 6), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    st.lists(st.integers(0, 2**24 - 1), min_size=5, max_size=5),
    st.integers(1, 3),
)
def test_all_localisation_scores_equal_scikit_learn(maps, bits, window):
    masks = np.array([[(b >> i) & 1 for i in range(24)] if n % 2 else [0] * 24 for n, b in enumerate(bits)], bool)
    masks = masks.reshape(maps.shape)
    scores = localisation_scores(maps, masks, window=window)
    pooled = np.lib.stride_tricks.sliding_window_view(maps.astype(np.float64), (window, window), (1, 2)).mean((3, 4))
    for level, labels, values in (
        ("pixel", masks.ravel(), maps.ravel()),
        ("image", masks.any((1, 2)), pooled.max((1, 2)).round(12)),
    ):
        if not labels.any():
            assert scores[f"{level}_ap"] is None and scores[f"{level}_f1_max"] is None
            continue
        precision, recall, _ = precision_recall_curve(labels, values)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert scores[f"{level}_auroc"] == _near(roc_auc_score(labels, values))
        assert scores[f"{level}_ap"] == _near(average_precision_score(labels, values))
        assert scores[f"{level}_f1_max"] == _near(best)
    if masks.any():
        assert scores["iou"] == _near(((maps > 0.5) & masks).sum() / ((maps > 0.5) | masks).sum())


def _pictures(seed, count, side=64):
    rng = np.random.default_rng(seed)
    scenes = rng.integers(0, 255, (count, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    return (scenes + rng.normal(0, 12, scenes.shape)).clip(0, 255).astype(np.uint8)


@_needs(ALEXNET)
def test_lpips_and_ic_lpips_equal_the_lpips_package_pair_by_pair(monkeypatch):
    network = lpips_network("alex")
    real, generated = _pictures(0, 2), _pictures(1, 7)
    generated[4:] = real[1]  # copies: distances of zero
    masks = np.zeros((9, 64, 64), bool)
    masks[:, 8:40, 16:50] = True
    masks[3] = False  # a black image in masked scores

    def distance(one, other):
        pair = [torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1 for image in (one, other)]
        with torch.no_grad():
            return float(network(*pair))

    def by_pairs(generated, real):
        nearest = [int(np.argmin([distance(m, r) for r in real])) for m in generated]
        clusters = [[m for m, c in zip(generated, nearest, strict=True) if c == k] for k in range(len(real))]
        means = [np.mean([distance(*p) for p in itertools.combinations(c, 2)]) for c in clusters if len(c) > 1]
        return np.mean(means)

    variant = Variant("alex", image_size=64)
    assert ic_lpips(generated, real, variant).value == _near(by_pairs(generated, real))
    black = [images * mask[..., None] for images, mask in ((generated, masks[:7]), (real, masks[7:]))]
    masked = ic_lpips(generated, real, variant, 0, masks[:7], masks[7:])
    assert masked.value == _near(by_pairs(*black))

    monkeypatch.setattr(InceptionFeatures, "file", "missing")  # LPIPS alone
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    options = {"image_size": 64, "lpips_net": "alex", "published_networks": True}
    sheet = score({"dent": real}, {"dent": generated}, **options)["scores"]["pooled"]
    assert sheet["lpips"] == _near(np.mean([distance(m, r) for m in generated for r in real]))
    assert sheet["lpips_diversity"] == _near(np.mean([distance(*p) for p in itertools.combinations(generated, 2)]))


class _ImageDataset(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def whole_inception(tmp_path_factory):
    """A weights folder whose Inception has a random last layer."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("weights")
    state = {name: value.float().contiguous() for name, value in load_file(WEIGHTS / INCEPTION).items()}
    last = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0)) * 0.1
    state = {"fc.weight": last, "fc.bias": torch.zeros(1008), **state}
    save_file(state, folder / INCEPTION)
    torch.save(state, folder / "inception.pth")
    return folder


def _by_torch_fidelity(folder, real, generated, **metrics):
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=_ImageDataset(generated),
        input2=_ImageDataset(real),
        feature_extractor_weights_path=str(folder / "inception.pth"),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        batch_size=4,
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=len(generated),
        **metrics,
    )


@_needs(INCEPTION)
def test_kid_and_is_of_images_equal_torch_fidelity(whole_inception, monkeypatch):
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(whole_inception))
    real, generated = _pictures(2, 4), _pictures(3, 4)
    generated[3] = 128  # a constant image
    ours = score({"dent": real}, {"dent": generated}, image_size=64, published_networks=True)["scores"]["pooled"]
    theirs = _by_torch_fidelity(whole_inception, real, generated, kid=True, isc=True)
    assert ours["kid"] == _near(theirs["kernel_inception_distance_mean"]) and abs(ours["kid"]) > 10 * TOLERANCE
    assert ours["is"] == _near(theirs["inception_score_mean"]) and ours["is"] > 1 + 10 * TOLERANCE


@pytest.mark.slow  # the eigenvalues of 2048 x 2048 take torch-fidelity half a minute
@_needs(INCEPTION)
def test_fid_of_images_equals_torch_fidelity(whole_inception, monkeypatch):
    monkeypatch.setenv("DEFECTORY_WEIGHTS", str(whole_inception))
    real, generated = _pictures(4, 5), _pictures(5, 5)
    ours = score({"dent": real}, {"dent": generated}, image_size=64, published_networks=True)["scores"]["pooled"]
    theirs = _by_torch_fidelity(whole_inception, real, generated, fid=True)
    assert ours["fid"] == _near(theirs["frechet_inception_distance"]) and ours["fid"] > 1
