"""Scores of generated normal images against real ones."""

import json

import numpy as np
import pytest

from defect_core.errors import InputError
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.frechet import kernel_distance
from defect_core.metrics.normal_images import score_normals

SIDE = 48


def _normals(seed, count, low=90):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, low + 60, (count, 6, 6, 1)).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return list((coarse + rng.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8))


def _score(training, unseen, generated, **options):
    return score_normals(training, unseen, generated, image_size=SIDE, published_networks=False, **options)


def test_images_of_one_distribution_score_like_two_halves_of_the_real_ones():
    train, test = _normals(0, 12), _normals(1, 8)
    same, other = _score(train, test, _normals(2, 10)), _score(train, test, _normals(3, 10, low=20))
    assert same["halves"] == other["halves"]
    assert same["scores"]["frechet_lite0"] < 1.5 * same["halves"]["frechet_lite0"]
    assert other["scores"]["frechet_lite0"] > 2 * same["halves"]["frechet_lite0"]
    assert other["scores"]["kernel_lite0"] > 10 * abs(same["halves"]["kernel_lite0"]) > 0
    assert same["scores"]["memorisation_copies"] == 0 and same["protocol"]["counts"] == {
        "training": 12,
        "unseen": 8,
        "generated": 10,
    }
    assert same == _score(train, test, _normals(2, 10)) and json.loads(json.dumps(same, allow_nan=False)) == same
    assert set(same["missing"]) == {"fid", "kid"}
    copies = _score(train, test, train)
    assert copies["scores"]["memorisation_copies"] == 1 and copies["scores"]["memorisation_lite0"] == 0


def test_the_kernel_distance_is_between_the_whole_sets():
    train, generated = _normals(0, 8), _normals(4, 8, low=60)
    rows = [Lite0Features().extract(np.stack(images)).pooled for images in (generated, train)]
    expected = kernel_distance(*rows, seed=0).mean
    assert _score(train, [], generated)["scores"]["kernel_lite0"] == pytest.approx(expected, rel=1e-4)


def test_few_images_give_a_reason_and_no_images_raise():
    few = _score(_normals(0, 2), _normals(1, 1), _normals(2, 5))
    assert "four real images" in few["missing"]["frechet_lite0"] and "kernel_lite0" in few["missing"]
    assert "fewer than two" in _score(_normals(0, 6), [], _normals(2, 1))["missing"]["kernel_lite0"]
    assert "two different" in _score(_normals(0, 1) * 5, [], _normals(2, 4))["missing"]["memorisation_lite0"]
    for sides in (([], _normals(1, 4), _normals(2, 4)), (_normals(0, 4), [], [])):
        with pytest.raises(InputError, match="at least one of each"):
            _score(*sides)
