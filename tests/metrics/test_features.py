"""Feature extractors: the right weights, and the numbers of the libraries that define them."""

import os

import numpy as np
import pytest
import torch

from defect_core.errors import InputError
from defect_core.metrics.features import (
    InceptionFeatures,
    Lite0Features,
    LpipsDistance,
    load_lite0_state,
    lpips_network,
    pairwise_distance,
)

LITE0_DIGEST = "c42a60971af0c1dfe4d052025cec98e730b704c66ffdb822ad659a27682629d7"


def _needs(file):
    folder = os.environ.get("DEFECTORY_WEIGHTS", "")
    exists = bool(folder) and os.path.isfile(os.path.join(folder, file))
    return pytest.mark.skipif(not exists, reason=f"needs {file} in DEFECTORY_WEIGHTS")


@pytest.fixture(scope="module")
def lite0():
    return Lite0Features()


@pytest.fixture
def images():
    """Smooth pictures with edges. For pure noise an ImageNet network always has the same output."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (5, 3, 6, 6)))
    smooth = torch.nn.functional.interpolate(coarse, size=96, mode="bilinear").permute(0, 2, 3, 1).numpy()
    smooth[:, 20:60, 30:50] = rng.uniform(0, 255, (5, 1, 1, 3))
    return smooth.round().astype(np.uint8)


def test_lite0_weights_are_the_trained_ones(lite0):
    state = load_lite0_state()
    assert lite0.digest == LITE0_DIGEST
    assert sum(not name.endswith("num_batches_tracked") for name in state) == 247
    spread = torch.cat([v for name, v in state.items() if name.endswith("running_var")])
    assert spread.min() >= 0 and spread.std() > 1  # fresh batch norms would all be 1


def _bullseye():
    """A target of rings and dots: only a trained network separates them from noise."""
    y, x = np.mgrid[-64:64, -64:64]
    rings = ((np.hypot(x, y) // 9) % 2 * 255).astype(np.uint8)
    checker = ((x // 16 + y // 16) % 2 * 255).astype(np.uint8)
    return np.repeat(np.stack([rings, checker])[..., None], 3, 3)


def test_lite0_probabilities_are_confident_and_sum_to_one(lite0):
    outputs = lite0.extract(_bullseye())
    assert outputs.probabilities.shape == (2, 1000)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-5)
    # untrained weights give about 0.001 everywhere
    assert outputs.probabilities.max() > 0.2
    assert outputs.probabilities[0].argmax() != outputs.probabilities[1].argmax()


def test_lite0_features_do_not_depend_on_the_batch(lite0, images):
    whole = lite0.extract(images)
    single = lite0.extract(images[3:4])
    assert whole.pooled.shape == (5, 1280)
    for a, b in zip(whole, single, strict=True):
        np.testing.assert_allclose(a[3:4], b, rtol=1e-3, atol=1e-4)


def test_perceptual_distance_is_zero_on_itself_and_grows_with_damage(lite0, images):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=images[0].shape)
    damaged = [np.clip(images[0] + s * noise, 0, 255).astype(np.uint8) for s in (0, 4, 12, 40)]
    distance = pairwise_distance(lite0.embed(np.stack(damaged)))[0]
    assert distance[0] == 0 and np.all(np.diff(distance) > 0)


def test_pairwise_distance_equals_the_loop():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(4, 50)).astype(np.float32), rng.normal(size=(3, 50)).astype(np.float32)
    expected = [[((x - y) ** 2).sum() for y in b] for x in a]
    np.testing.assert_allclose(pairwise_distance(a, b), expected, rtol=1e-5)


def test_images_of_a_wrong_type_or_shape_raise(lite0, images):
    with pytest.raises(ValueError, match="uint8"):
        lite0.extract(images / 255)
    with pytest.raises(ValueError, match="uint8"):
        lite0.extract(images[0])


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.delenv("DEFECTORY_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


@pytest.mark.parametrize("load", [InceptionFeatures, lambda: LpipsDistance("vgg"), lambda: LpipsDistance("alex")])
def test_missing_weights_are_named_and_nothing_is_downloaded(load, no_weights, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(InputError, match=r"safetensors not found in DEFECTORY_WEIGHTS"):
        load()


def test_an_unknown_lpips_trunk_raises():
    with pytest.raises(InputError, match="alex or vgg"):
        lpips_network("resnet")


@pytest.mark.parametrize(
    "net",
    [
        pytest.param("alex", marks=_needs("alexnet_features_imagenet.safetensors")),
        pytest.param("vgg", marks=_needs("vgg16_features_imagenet_fp16.safetensors")),
    ],
)
def test_embedded_lpips_equals_the_lpips_package(net, images):
    distance = LpipsDistance(net)
    network = lpips_network(net)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = network(tensors[:1].expand(4, -1, -1, -1), tensors[1:]).flatten().numpy()
    np.testing.assert_allclose(pairwise_distance(distance.embed(images))[0, 1:], expected, rtol=1e-4)
    assert expected.min() > 0.05


@_needs("inception_v3_fid_2015_pool3.safetensors")
def test_inception_returns_pool3_features_and_no_logits(images):
    network = InceptionFeatures()
    features, probabilities = network.extract(images[:2])
    assert features.shape == (2, 2048) and features.min() >= 0 and features.std() > 0.1
    assert not network.has_logits and probabilities is None
    with pytest.raises(InputError, match="last layer"):
        network.probabilities(images[:1])
