"""The whole score sheet on toy sets."""

import json
import os

import numpy as np
import pytest

from defect_core.errors import InputError
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.protocol import score_sets
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
    made = {"scratch": _images(2, 6), "dent": _images(3, 5)}
    return real, made


@pytest.fixture(scope="module")
def result(sets):
    real, made = sets
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    return score_sets(real, made, *masks, image_size=SIZE, seed=3, real_networks=False)


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
    real, made = ({d: side[d] for d in reversed(list(side))} for side in sets)
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    assert score_sets(real, made, *masks, image_size=SIZE, seed=3, real_networks=False) == result


def test_copies_of_the_training_images_are_seen_as_such(sets):
    real, made = sets
    copied = score_sets(real, real, image_size=SIZE, real_networks=False)["scores"]["pooled"]
    fresh = score_sets(real, made, image_size=SIZE, real_networks=False)["scores"]["pooled"]
    assert copied["memorisation_copies"] == 1 and copied["memorisation_pixels"] == 0
    assert fresh["memorisation_copies"] == 0
    assert copied["frechet_lite0"] < 1e-3 < fresh["frechet_lite0"]


def test_unseen_images_change_the_distances_and_nothing_about_variety_or_copies(sets, result):
    real, generated = sets[0], sets[1]
    other = {defect: _images(90 + i, 6) for i, defect in enumerate(real)}
    plain = score_sets(real, generated, image_size=64, real_networks=False)
    against = score_sets(real, generated, image_size=64, real_networks=False, unseen=other)
    free = [n for n in plain["scores"]["pooled"] if n.startswith(("precision", "recall", "density", "coverage"))]
    assert any(against["scores"]["pooled"][name] != plain["scores"]["pooled"][name] for name in free)
    for name, value in plain["scores"]["pooled"].items():
        if name in free:
            continue
        moved = against["scores"]["pooled"][name] != value
        assert moved == name.startswith(("frechet", "kernel")), name
    assert all(counts["compared_with"] == 6 for counts in against["protocol"]["defects"].values())


def test_a_second_scoring_sees_only_new_images_and_changes_no_score(sets, tmp_path, monkeypatch):
    real, made = sets
    masks = [{d: _masks(images) for d, images in side.items()} for side in sets]
    first = score_sets(real, made, *masks, image_size=SIZE, real_networks=False, store=FeatureStore(tmp_path))
    assert first == score_sets(real, made, *masks, image_size=SIZE, real_networks=False)
    with monkeypatch.context() as patch:
        patch.setattr(Lite0Features, "extract", None)  # would fail if called
        again = score_sets(real, made, *masks, image_size=SIZE, real_networks=False, store=FeatureStore(tmp_path))
    assert again == first
    more = {**made, "dent": [*made["dent"], *_images(50, 2)]}
    store = FeatureStore(tmp_path)
    score_sets(real, more, image_size=SIZE, real_networks=False, store=store)
    assert store.computed == 2


def test_the_nearest_pairs_are_listed_by_name(sets):
    real, made = sets
    made = {**made, "dent": [*made["dent"], real["dent"][2]]}
    names = tuple({d: [f"{s}{i}" for i in range(len(side[d]))] for d in side} for s, side in (("r", real), ("g", made)))
    nearest = score_sets(real, made, image_size=SIZE, real_networks=False, names=names)["nearest"]
    for space in ("features", "pixels"):
        assert nearest["dent"][space][0] == {"generated": "g5", "real": "r2", "ratio": 0.0}
        assert len(nearest["scratch"][space]) == 5
    assert score_sets(real, made, image_size=SIZE, real_networks=False)["nearest"]["dent"]["pixels"][0]["real"] == 2


def test_a_single_image_leaves_set_scores_out_with_a_reason():
    result = score_sets({"dent": _images(0, 1)}, {"dent": _images(1, 1)}, image_size=SIZE, real_networks=False)
    assert {"frechet_lite0", "kernel_lite0", "dent/diversity", "ic_lpips_masked_lite0"} <= set(result["missing"])
    assert all(result["missing"].values())


def test_images_of_other_sizes_are_brought_to_the_size_of_the_protocol(sets):
    real, made = sets
    doubled = {d: [np.kron(i, np.ones((2, 2, 1), np.uint8)) for i in images] for d, images in made.items()}
    a = score_sets(real, made, image_size=SIZE, real_networks=False)["scores"]["pooled"]
    b = score_sets(real, doubled, image_size=SIZE, real_networks=False)["scores"]["pooled"]
    assert b["memorisation_pixels"] == pytest.approx(a["memorisation_pixels"], rel=0.05)


def test_mistakes_are_named(sets):
    real, made = sets
    with pytest.raises(InputError, match="no generated image"):
        score_sets(real, {"dent": []})
    with pytest.raises(InputError, match="'crack' has generated but no real"):
        score_sets(real, {"crack": made["dent"]})
    with pytest.raises(InputError, match="one side only"):
        score_sets(real, made, real_masks={d: _masks(i) for d, i in real.items()})
    with pytest.raises(InputError, match="5 images and 0 masks"):
        score_sets(real, made, real_masks={d: _masks(i) for d, i in real.items()}, generated_masks={})


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("DEFECTORY_WEIGHTS", ""), "alexnet_features_imagenet.safetensors")),
    reason="needs the weights in DEFECTORY_WEIGHTS",
)
def test_published_scores_appear_where_the_networks_are_at_hand(sets):
    real, made = sets
    result = score_sets(real, made, image_size=SIZE, lpips_net="alex")
    assert {"fid", "kid", "lpips", "lpips_diversity", "ic_lpips"} <= set(result["scores"]["pooled"])
    assert "last layer" in result["missing"]["is"]
    assert result["protocol"]["networks"]["lpips"]["name"] == "lpips_0.1_alex"
