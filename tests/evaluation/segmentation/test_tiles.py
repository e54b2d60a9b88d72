"""`image_size: auto`: the resolution rule, crops, stitched score maps, and a fixed size that stays as it was."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from defect_core.data.masks import component_widths
from defect_core.data.records import Record, record_rows, save_png, write_records
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.evaluation.segmentation.data import Sample, resize_sample
from defect_core.evaluation.segmentation.evaluate import evaluate_segmenter
from defect_core.evaluation.segmentation.measure import measure_segmenter, resolve_config
from defect_core.evaluation.segmentation.scale import (
    MAX_ENLARGED_PIXELS,
    MIN_DEFECT_WIDTH,
    WorkingScale,
    choose_scale,
    share_tile,
    tile_starts,
)
from defect_core.evaluation.segmentation.tiles import cut_crops, cut_normal_places, evaluate_tiled, predict_tiled
from defect_core.metrics.bootstrap import bootstrap_intervals
from defect_core.metrics.localisation import image_score
from defect_core.project.arm_data import load_arm_data
from defect_core.project.params import Params
from defect_core.project.paths import Project

SMALL = WorkingScale(1.0, 32, 8, 3, 8)
SCORES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pro", "iou", "image_auroc", "image_ap", "image_f1_max")


class _Redness:
    """A model whose score of a pixel depends on this pixel only, so that any tiling must give the same map."""

    def __init__(self):
        self.shapes = set()

    def predict(self, images):
        self.shapes.add(images.shape[1:])
        assert len(images) <= 16
        return images[..., 0].astype(np.float32) / 255


def _scene(seed, shape, is_defective=True):
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 140, (*shape, 3), np.uint8), np.zeros(shape, bool)
    if is_defective:
        top, left = (int(rng.integers(n - 9)) for n in shape)
        mask[top : top + 4, left : left + 9] = True
        image[mask] += np.uint8(90)
    return Sample(image, mask)


@given(
    st.lists(st.tuples(st.integers(16, 13000), st.integers(16, 13000)), min_size=1, max_size=4),
    st.lists(st.integers(1, 400), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_rule_keeps_defects_wide_enough_and_bounds_the_size(sizes, widths):
    scale = choose_scale(sizes, widths)
    longer, pixels = max(map(max, sizes)), max(h * w for h, w in sizes)
    assert scale.tile % 32 == 0 and 32 <= scale.tile <= 256 and 0 <= scale.overlap < scale.tile
    assert max(max(scale.size(*side)) for side in sizes) >= min(longer, 256)
    if not widths:
        assert scale.defect_width is None and max(scale.size(longer, longer)) <= 256 and scale.scale <= 1
        return
    assert scale.defect_width == sorted(widths)[-(-len(widths) // 20) - 1]
    if scale.scale > 1:
        assert scale.defect_width < MIN_DEFECT_WIDTH and pixels * scale.scale**2 <= MAX_ENLARGED_PIXELS
    if scale.defect_width >= MIN_DEFECT_WIDTH or pixels * 9 <= MAX_ENLARGED_PIXELS:
        assert scale.defect_width * scale.scale >= MIN_DEFECT_WIDTH
    else:
        assert scale.scale >= 1
    assert scale.crops == (8 if max(scale.size(longer, longer)) > scale.tile else 1)


@pytest.mark.parametrize(("shape", "width"), [((500, 1260), 5), ((500, 1260), 1), ((2000, 1900), 9), ((400, 3000), 31)])
def test_defects_are_three_pixels_wide_at_the_working_resolution(shape, width):
    mask, rng = np.zeros(shape, bool), np.random.default_rng(0)
    for number in range(5):
        top, left = number * shape[0] // 5 + int(rng.integers(7)), int(rng.integers(shape[1] - 200))
        mask[top : top + width, left : left + width + int(rng.integers(150))] = True
    scale = choose_scale([shape], component_widths(mask).tolist())
    working = resize_sample(np.zeros((*shape, 3), np.uint8), mask, scale.size(*shape)).mask
    assert component_widths(working).min() >= MIN_DEFECT_WIDTH
    assert working.shape[0] / working.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_large_images_keep_the_resolution_that_their_defects_need():
    assert choose_scale([(12000, 12000)], [3]).size(12000, 12000) == (12000, 12000)
    assert choose_scale([(12000, 8000)], [70]).size(12000, 8000) == (600, 400)
    # One speck in a hundred components does not decide.
    assert choose_scale([(12000, 8000)], [1] + [70] * 99).defect_width == 70
    with pytest.raises(ValueError, match="no image size"):
        choose_scale([], [3])


@given(st.integers(32, 400), st.sampled_from([32, 64, 256]), st.integers(0, 31))
def test_tiles_cover_every_pixel_and_share_the_overlap(length, tile, overlap):
    length = max(length, tile)
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == length - tile
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_stitched_map_equals_the_map_of_the_whole_image(height, width, overlap):
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
    model = _Redness()
    stitched = predict_tiled(model, image, SMALL._replace(overlap=overlap))
    assert stitched.shape == (height, width) and stitched.dtype == np.float32
    np.testing.assert_allclose(stitched, image[..., 0] / np.float32(255), atol=1e-5)
    assert model.shapes == {(32, 32, 3)}


def test_pixels_at_the_border_of_a_tile_count_least():
    class _Edge:
        def predict(self, images):
            maps = np.zeros(images.shape[:3], np.float32)
            maps[:, [0, -1]] = maps[:, :, [0, -1]] = 1
            return maps

    stitched = predict_tiled(_Edge(), np.zeros((32, 200, 3), np.uint8), SMALL)
    assert stitched[10, 1:-1].max() < 0.3 and stitched[10, 0] == stitched[10, -1] == 1


@pytest.mark.parametrize("kind", ["max_of_mean", "max"])
def test_scores_agree_with_those_of_whole_images(kind):
    samples = [_scene(seed, (90, 90), seed < 6) for seed in range(10)]
    scale = WorkingScale(1.0, 32, 8, 4, 8)
    tiled = evaluate_tiled(_Redness(), samples, scale, "max")
    whole = evaluate_segmenter(_Redness(), samples, "max")
    for name in SCORES:
        assert tiled.scores[name] == pytest.approx(whole.scores[name], abs=2e-3), name
    low_high = [bootstrap_intervals([e.tables], 0) for e in (tiled, whole)]
    for name in SCORES:
        assert low_high[0][name] == pytest.approx(low_high[1][name], abs=0.01), name
    protocol = evaluate_tiled(_Redness(), samples, scale, kind).scores["protocol"]
    assert protocol["tile"] == 32 and protocol["overlap"] == 8 and protocol["scale"] == 1
    assert protocol["narrowest_defect_working_px"] == 4 and "at least 3 px wide" in protocol["resolution_rule"]
    assert (protocol["defect_images"], protocol["normal_images"]) == (6, 4)
    assert protocol["image_score"].startswith("max of the 3x3" if kind == "max_of_mean" else "max of the map")


def test_images_of_different_sizes_are_scored_together_and_read_one_by_one():
    shapes = [(40, 300), (70, 33), (10, 10), (64, 64)]
    read = []

    class _Lazy:
        def __len__(self):
            return len(shapes)

        def __getitem__(self, index):
            if index >= len(shapes):
                raise IndexError
            read.append(index)
            return _scene(index, shapes[index], index < 2)

    result = evaluate_tiled(_Redness(), _Lazy(), SMALL)
    assert read == [0, 1, 2, 3] and result.scores["pixel_ap"] > 0.5
    assert [m.shape for m in result.maps] == [(34, 256), (70, 33), (10, 10), (64, 64)]
    assert len(result.tables.label) == 4
    with pytest.raises(InputError, match="no test image"):
        evaluate_tiled(_Redness(), [], SMALL)


def test_crops_show_every_component_and_normal_places_show_none():
    mask = np.zeros((200, 300), bool)
    mask[20:80, 20:120] = True
    mask[190:193, 290:293] = True
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)
    crops = [c for seed in range(6) for c in cut_crops(Sample(image, mask), SMALL, np.random.default_rng(seed))]
    assert len(crops) == 48 and all(c.image.shape == (32, 32, 3) and c.mask.any() for c in crops)
    small = sum(int(c.mask.sum()) == 9 for c in crops)
    assert 10 < small < 38  # The component of 9 pixels is as frequent as that of 6000.
    assert all((c.image[..., 0] > 0).tolist() == c.mask.tolist() for c in crops)
    places = cut_normal_places(Sample(image, mask), SMALL, np.random.default_rng(0))
    assert len(places) == 8 and not any(c.mask.any() for c in places)
    assert cut_normal_places(Sample(image, np.ones_like(mask)), SMALL, np.random.default_rng(0)) == []


def test_an_image_smaller_than_a_tile_is_reflected():
    sample = _scene(0, (20, 25))
    (crop,) = cut_crops(sample, SMALL._replace(crops=1), np.random.default_rng(0))
    assert np.array_equal(crop.image[:20, :25], sample.image) and np.array_equal(crop.mask[:20, :25], sample.mask)
    assert np.array_equal(crop.image[20], crop.image[19]) and np.array_equal(crop.mask[:, 25], crop.mask[:, 24])


def test_one_network_over_products_has_one_tile():
    shared = share_tile({"a": choose_scale([(60, 60)], [9]), "b": choose_scale([(900, 900)], [9])})
    assert {(s.tile, s.overlap, s.crops) for s in shared.values()} == {(256, 64, 8)}
    assert shared["a"].scale == 1 and shared["b"].scale < 1


def test_image_score_of_a_large_map_does_not_depend_on_strips(monkeypatch):
    score_map = np.random.default_rng(0).random((301, 40)).astype(np.float32)
    whole = image_score(score_map, 21)
    monkeypatch.setattr("defect_core.metrics.localisation._STRIP_PIXELS", 1200)
    assert image_score(score_map, 21) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("value", ["automatic", 100, 0, True, None, 64.5, [64]])
def test_other_sizes_are_refused(value):
    with pytest.raises(ValidationError, match=r"expected (a multiple of 32, at least 32, or auto|no true or false)"):
        SegmenterConfig(image_size=value)


def _project(tmp_path, image_size, shape=(120, 300)):
    project, rows = Project(tmp_path), []
    for number in range(8):
        defect = "good" if number % 2 else "dent"
        sample = _scene(number, shape, defect == "dent")
        name, mask = f"{defect}/{number}.png", None
        save_png(sample.image, tmp_path / "data/raw/p" / name)
        if defect == "dent":
            mask = f"masks/{name}"
            save_png(sample.mask, tmp_path / "data/raw/p" / mask)
        split = "train" if number < 4 else "test"
        rows.append(Record("p", defect, name, mask, split, f"{number}", shape[1], shape[0]))
    (tmp_path / "data/split").mkdir()
    write_records(rows, tmp_path / "data/split/p.parquet")
    segment = {"image_size": image_size, "seeds": (0,), "steps": 2, "batch_size": 4, "validation_fraction": 0.5}
    project.__dict__["params"] = Params(segment=segment)
    return project


def test_auto_trains_on_crops_and_tests_whole_images(tmp_path):
    project = _project(tmp_path, "auto")
    data, records = load_arm_data(project, "p", [])
    assert data.scale is not None and data.scale.defect_width == 4 and data.scale.tile == 256
    assert len(data.real) == 2 * 8 and len(data.normal) % 8 == 0 and len(records) == len(data.test) == 4
    assert {s.image.shape for s in data.real} == {(256, 256, 3)}
    assert [bool(s.mask.any()) for s in data.test] == [True, True, False, False]
    again, _ = load_arm_data(project, "p", [])
    assert all(np.array_equal(a.image, b.image) for a, b in zip(data.normal, again.normal, strict=True))
    config = resolve_config(project.params.segment, data.defect_types)
    seen = []
    result = measure_segmenter(data, config, 0, "p", after_seed=lambda *a: seen.append(a))
    protocol = result["protocol"]
    assert (protocol["image_size"], protocol["train_defects"], protocol["validation_defects"]) == ("auto", 2, 1)
    assert (protocol["tile"], protocol["steps"]) == (256, 2)
    assert seen[0][1].image_size == "auto" and "best_on_validation" in result
    assert data.training is not None and len(data.normal) == 8 * (2 + len(data.training.place_owner))
    note = result["inspection"]["targets"]["0.05"]["note"]
    assert note == "5 % overkill needs 19 held-out normal images (20 to extrapolate); found 2"


def test_a_fixed_size_is_resized_to_a_square_as_before(tmp_path):
    data, _ = load_arm_data(_project(tmp_path, 64), "p", [])
    assert data.scale is None and data.crops == 1
    assert len(data.real) == len(data.normal) == 2
    assert {s.image.shape for s in (*data.real, *data.test)} == {(64, 64, 3)}


def test_masks_of_one_image_are_united(tmp_path):
    project = _project(tmp_path, 64)
    split = tmp_path / "data/split/p.parquet"
    rows = record_rows(split)
    other = np.zeros((120, 300), bool)
    other[100:, :30] = True
    save_png(other, tmp_path / "data/raw/p/masks/scratch/0.png")
    extra = Record("p", "scratch", rows[0].image, "masks/scratch/0.png", "train", "0", 300, 120)
    write_records([*rows, extra], split)
    data, _ = load_arm_data(project, "p", [])
    assert len(data.real) == 2 and len(data.defect_types) == 3
    assert data.real[0].mask[60, 3] and data.real[0].mask.sum() > 60
