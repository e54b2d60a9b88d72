"""The whole score sheet on small sets."""

import json
import os

import numpy as np
import pytest
from score_options import score

from defect_core.errors import InputError
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.store import FeatureStore

SIZE = 48


def _images(seed, count):
    rng = np.random.default_rng(seed)
    images = np.full((count, SIZE, SIZE, 3), 120.0)
    for image in images:
        image += np.linspace(0, rng.uniform(20, 90), SIZE)[:, None]
        y, x = rng.integers(4, SIZE - 14, 2)
        image[y : y + 10, x : x + 10] = rng.uniform(0, 255, 3)
    return list(images.clip(0, 255).astype(np.uint8))


def _masks(images):
    return [np.abs(i.astype(int) - np.median(i, 1, keepdims=True)).max(2) > 15 for i in images]


@pytest.fixture(scope="module")
def sets():
    real = {"scratch": _images(0, 3), "dent": _images(1, 4)}
    generated = {"scratch": _images(2, 6), "dent": _images(3, 5)}
    return real, generated


@pytest.fixture(scope="module")
def result(sets):
    real, generated = sets
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    return score(real, generated, *masks, image_size=SIZE, seed=3)


def test_the_sheet_has_every_embedded_score_for_each_defect_and_pooled(result):
    names = {"frechet_lite0", "kernel_lite0", "score_lite0", "ic_lpips_lite0", "ic_lpips_masked_lite0", "diversity"}
    names |= {"memorisation_lite0", "memorisation_pixels", "memorisation_copies"}
    names |= {"mask_diversity", "mask_shape_diversity"}
    pooled_only = {f"{name}_lite0" for name in ("precision", "recall", "density", "coverage")}
    assert set(result["scores"]["pooled"]) == names | pooled_only
    for scores in result["scores"]["defects"].values():
        assert set(scores) | {n.split("/")[1] for n in result["missing"] if "/" in n} >= names
    assert result["protocol"]["defects"]["dent"] == {"real": 4, "compared_with": 4, "generated": 5}
    assert {"fid", "kid", "is", "lpips", "ic_lpips"} <= set(result["missing"])


def test_the_sheet_is_json_with_six_digits_and_no_path(result):
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    assert os.getcwd() not in text and os.path.expanduser("~/") not in text
    for value in result["scores"]["pooled"].values():
        assert value == float(f"{value:.6g}")


def test_the_sheet_is_deterministic_and_ignores_the_order_of_defects(sets, result):
    real, generated = ({d: side[d] for d in reversed(list(side))} for side in sets)
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    assert score(real, generated, *masks, image_size=SIZE, seed=3) == result


def test_copies_of_the_training_images_have_zero_memorisation_ratio(sets):
    real, generated = sets
    copied = score(real, real, image_size=SIZE)["scores"]["pooled"]
    fresh = score(real, generated, image_size=SIZE)["scores"]["pooled"]
    assert copied["memorisation_copies"] == 1 and copied["memorisation_pixels"] == 0
    assert fresh["memorisation_copies"] == 0
    assert copied["frechet_lite0"] < 1e-3 < fresh["frechet_lite0"]


def test_unseen_images_change_distances_but_not_diversity_or_memorisation(sets, result):
    real, generated = sets[0], sets[1]
    other = {defect: _images(90 + i, 6) for i, defect in enumerate(real)}
    plain = score(real, generated, image_size=64)
    against = score(real, generated, image_size=64, unseen=other)
    free = [n for n in plain["scores"]["pooled"] if n.startswith(("precision", "recall", "density", "coverage"))]
    assert any(against["scores"]["pooled"][name] != plain["scores"]["pooled"][name] for name in free)
    for name, value in plain["scores"]["pooled"].items():
        if name in free:
            continue
        moved = against["scores"]["pooled"][name] != value
        assert moved == name.startswith(("frechet", "kernel")), name
    assert all(counts["compared_with"] == 6 for counts in against["protocol"]["defects"].values())


def test_a_stored_set_is_scored_without_a_network_and_with_equal_scores(sets, tmp_path, monkeypatch):
    real, generated = sets
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    first = score(real, generated, *masks, image_size=SIZE, store=FeatureStore(tmp_path))
    assert first == score(real, generated, *masks, image_size=SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Lite0Features, "extract", None)  # would fail if called
        again = score(real, generated, *masks, image_size=SIZE, store=FeatureStore(tmp_path))
    assert again == first
    more = {**generated, "dent": [*generated["dent"], *_images(50, 2)]}
    store = FeatureStore(tmp_path)
    score(real, more, image_size=SIZE, store=store)
    assert store.computed == 2


def test_the_nearest_pairs_are_listed_by_name(sets):
    real, generated = sets
    generated = {**generated, "dent": [*generated["dent"], real["dent"][2]]}
    names = tuple(
        {d: [f"{s}{i}" for i in range(len(side[d]))] for d in side} for s, side in (("r", real), ("g", generated))
    )
    nearest = score(real, generated, image_size=SIZE, names=names)["nearest"]
    for space in ("features", "pixels"):
        assert nearest["dent"][space][0] == {"generated": "g5", "real": "r2", "ratio": 0.0}
        assert len(nearest["scratch"][space]) == 5
    assert score(real, generated, image_size=SIZE)["nearest"]["dent"]["pixels"][0]["real"] == 2


def test_a_single_image_gives_a_reason_for_each_set_score():
    result = score({"dent": _images(0, 1)}, {"dent": _images(1, 1)}, image_size=SIZE)
    assert {"frechet_lite0", "kernel_lite0", "dent/diversity", "ic_lpips_masked_lite0"} <= set(result["missing"])
    assert all(result["missing"].values())


def test_images_of_other_sizes_are_resized_to_the_size_of_the_protocol(sets):
    real, generated = sets
    doubled = {d: [np.kron(i, np.ones((2, 2, 1), np.uint8)) for i in images] for d, images in generated.items()}
    a = score(real, generated, image_size=SIZE)["scores"]["pooled"]
    b = score(real, doubled, image_size=SIZE)["scores"]["pooled"]
    assert b["memorisation_pixels"] == pytest.approx(a["memorisation_pixels"], rel=0.05)


def test_invalid_input_raises_an_error_that_names_it(sets):
    real, generated = sets
    with pytest.raises(InputError, match="no generated image"):
        score(real, {"dent": []})
    with pytest.raises(InputError, match="'crack' has generated but no real"):
        score(real, {"crack": generated["dent"]})
    with pytest.raises(InputError, match="one side only"):
        score(real, generated, real_masks={d: _masks(i) for d, i in real.items()})
    with pytest.raises(InputError, match="5 images and 0 masks"):
        score(real, generated, real_masks={d: _masks(i) for d, i in real.items()}, generated_masks={})


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("DEFECTORY_WEIGHTS", ""), "alexnet_features_imagenet.safetensors")),
    reason="needs the weights in DEFECTORY_WEIGHTS",
)
def test_published_scores_are_computed_if_their_networks_are_installed(sets):
    real, generated = sets
    result = score(real, generated, image_size=SIZE, lpips_net="alex", published_networks=True)
    assert {"fid", "kid", "lpips", "lpips_diversity", "ic_lpips"} <= set(result["scores"]["pooled"])
    assert "last layer" in result["missing"]["is"]
    assert result["protocol"]["networks"]["lpips"]["name"] == "lpips_0.1_alex"
