"""Foreground segmentation and placement of defects."""

import numpy as np
import pytest

from defect_core.data.demo import render_demo_image
from defect_core.data.foreground import find_foreground, has_texture_direction
from defect_core.data.placement import PlacementConfig, place_defect


def _disc(height, width, centre, radius):
    row, column = np.mgrid[:height, :width]
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2


def _part(size, centre, radius, seed=0):
    """Return an image of a bright disc on a dark, noisy background, and the mask of the disc."""
    on = _disc(*size, centre, radius)
    noise = np.random.default_rng(seed).normal(0, 4, (*size, 3))
    return np.clip(np.where(on[..., None], 190, 50) + noise, 0, 255).astype(np.uint8), on


def test_foreground_of_objects_is_found_and_textures_are_all_foreground():
    image, truth = _part((120, 160), (50, 90), 35)
    product = find_foreground(image)
    assert (product & truth).sum() / (product | truth).sum() > 0.93
    assert find_foreground(255 - image)[50, 90] and not find_foreground(255 - image)[5, 5]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    slope = np.repeat(np.linspace(40, 200, 100).astype(np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    bump = 60 + 90 * np.exp(-(np.hypot(*np.mgrid[-50:50, -50:50]) ** 2) / 1200)  # uneven light
    lit = (bump[..., None] + rng.normal(0, 3, (100, 100, 3))).astype(np.uint8)
    for image in (
        noise,
        lit,
        slope,
        np.full((64, 64, 3), 9, np.uint8),
        render_demo_image("weave", "train/good", 0, 1).image,
    ):
        assert find_foreground(image).all()
    ring = find_foreground(render_demo_image("flange", "train/good", 0, 1).image)
    assert 0.3 < ring.mean() < 0.55 and not ring[64, 64] and not ring[:4].any()


@pytest.mark.parametrize(
    "sizes", [((96, 96), (96, 96)), ((96, 96), (192, 192)), ((90, 120), (110, 100)), ((300, 300), (60, 60))]
)
def test_placed_masks_are_on_the_product(sizes):
    (sh, sw), (th, tw) = sizes
    source, _ = _part((sh, sw), (sh / 2, sw / 2), 0.36 * sh)
    mask = np.zeros((sh, sw), dtype=bool)
    mask[sh // 2 : sh // 2 + sh // 8, sw // 2 - 2 : sw // 2 + 2] = True
    places = set()
    for seed in range(12):
        target, on = _part((th, tw), (0.45 * th, 0.55 * tw), 0.34 * min(th, tw), seed)
        placed = place_defect(source, mask, target, np.random.default_rng(seed))
        assert placed.mask.shape == placed.valid.shape == (th, tw) and placed.warped.shape == (th, tw, 3)
        assert placed.mask.any() and (placed.mask & on).sum() >= 0.8 * placed.mask.sum()
        assert placed.valid[placed.mask].all()
        assert np.array_equal(placed.warped[~placed.valid], target[~placed.valid])
        expected = mask.sum() * abs(np.linalg.det(placed.matrix[:, :2]))
        assert 0.6 * expected - 3 <= placed.mask.sum() <= 1.5 * expected + 3
        rows, columns = np.nonzero(placed.mask)
        places.add((round(rows.mean()), round(columns.mean())))
    assert len(places) > 4


def test_matrix_maps_image_and_mask():
    row, column = np.mgrid[:100, :100]
    source = np.dstack([row * 2, column * 2, row * 0]).astype(np.uint8)  # a texture whose colours are its coordinates
    mask = _disc(100, 100, (40, 30), 9)
    target = np.full((120, 100, 3), 90, np.uint8)
    for seed in range(15):
        placed = place_defect(source, mask, target, np.random.default_rng(seed))
        y, x = np.nonzero(placed.mask)
        came_from = placed.warped[y, x].astype(float)
        back = np.linalg.inv(placed.matrix[:, :2]) @ (np.stack([x, y]) + 0.5 - placed.matrix[:, 2:])
        assert np.abs(came_from[:, 1] / 2 + 0.5 - back[0]).max() < 1.2
        assert np.abs(came_from[:, 0] / 2 + 0.5 - back[1]).max() < 1.2
        distance = np.hypot(came_from[:, 0] / 2 - 40, came_from[:, 1] / 2 - 30)
        assert distance.max() < 10.5


def test_border_does_not_cut_a_complete_mask():
    rng = np.random.default_rng(0)
    image = rng.integers(90, 110, (80, 80, 3), dtype=np.uint8)
    for mask in (_disc(80, 80, (40, 40), 30), _disc(80, 80, (12, 70), 8)):
        for seed in range(15):
            placed = place_defect(image, mask, image, np.random.default_rng(seed))
            scale = abs(np.linalg.det(placed.matrix[:, :2]))
            assert placed.mask.sum() > 0.93 * scale * mask.sum() - 4
    disc = _disc(80, 80, (40, 40), 9)
    for seed in range(15):  # a target for which points outside would have the smaller difference
        bright = np.full_like(image, 230)
        placed = place_defect(image, disc, bright, np.random.default_rng(seed), PlacementConfig(scale=(1.0, 1.0)))
        assert placed.mask.sum() > 0.95 * disc.sum()
    wide = np.zeros((80, 80), dtype=bool)
    wide[40, 2:78] = True
    small = place_defect(image, wide, image[:30, :30].copy(), np.random.default_rng(0))
    assert small.mask.any() and small.mask.any(axis=0).sum() < 30


def test_similar_background_does_not_attract_the_defect():
    source, _ = _part((96, 96), (48, 48), 30)
    mask = _disc(96, 96, (48, 48), 5)
    target, on = _part((96, 96), (40, 50), 28)
    target = 240 - target  # the background now has the colour of the source's product
    assert not find_foreground(target)[2, 2]
    for seed in range(10):
        placed = place_defect(source, mask, target, np.random.default_rng(seed))
        assert (placed.mask & on).sum() >= 0.8 * placed.mask.sum()


def test_mask_beside_its_product_is_placed_on_the_target():
    image, _ = _part((96, 96), (48, 48), 16)
    beside = _disc(96, 96, (12, 12), 6)
    image[beside] = 56
    target, _ = _part((96, 96), (48, 48), 16, seed=1)
    assert not find_foreground(image)[beside].any()
    for seed in range(20):
        placed = place_defect(image, beside, target, np.random.default_rng(seed))
        assert (placed.mask & find_foreground(target)).any()


def _brushed(seed, angle=0):
    """Return an image of lines along the rows with noise, rotated by `angle` quarter turns."""
    rng = np.random.default_rng(seed)
    lines = 120 + np.repeat(rng.normal(0, 12, (96, 1, 1)), 96, 1) + rng.normal(0, 4, (96, 96, 3))
    return np.ascontiguousarray(np.rot90(np.clip(lines, 0, 255).astype(np.uint8), angle))


@pytest.mark.parametrize("angle", [0, 1])
def test_defects_keep_the_direction_of_a_texture(angle):
    weave = render_demo_image("weave", "train/good", 0, 1).image
    assert has_texture_direction(_brushed(0, angle)) and not has_texture_direction(weave)
    assert not has_texture_direction(np.full((64, 64, 3), 9, np.uint8))
    mask = _disc(96, 96, (40, 50), 8)
    turns = {}
    for name, source, target in (
        ("brushed", _brushed(0, angle), _brushed(1, angle)),
        ("weave", weave[:96, :96], weave[-96:, -96:]),
    ):
        placed = [place_defect(source, mask, target, np.random.default_rng(seed)) for seed in range(30)]
        turned = np.array([np.degrees(np.arctan2(*p.matrix[::-1, 0])) for p in placed])
        turns[name] = np.abs((turned + 90) % 180 - 90)  # from the nearest half turn
    assert turns["brushed"].max() <= 3.01
    assert turns["weave"].max() > 80


def test_defects_of_few_pixels_survive_shrinking():
    image = np.full((400, 400, 3), 90, np.uint8)
    mask = np.zeros((400, 400), dtype=bool)
    mask[200, [201, 205]] = True
    for seed in range(10):
        assert place_defect(image, mask, image[:40, :40].copy(), np.random.default_rng(seed)).mask.any()


def test_similar_surroundings_are_preferred():
    """On a texture with a bright and a dark side, a defect of the bright side is placed on the bright side."""
    image = np.full((96, 96, 3), 70, np.uint8)
    image[:, 48:] = 180
    image = image + np.random.default_rng(0).integers(0, 9, image.shape, dtype=np.uint8)
    mask = _disc(96, 96, (30, 75), 6)
    target = image[:, ::-1].copy()  # bright on the left
    middle = [np.nonzero(place_defect(image, mask, target, np.random.default_rng(s)).mask)[1].mean() for s in range(20)]
    assert np.mean(np.array(middle) < 48) >= 0.9


def test_placement_follows_the_seed_and_wrong_masks_are_errors():
    source, _ = _part((96, 96), (48, 48), 36)
    mask = _disc(96, 96, (50, 50), 5)
    one, other = (place_defect(source, mask, source, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.mask, other.mask) and np.array_equal(one.warped, other.warped)
    with pytest.raises(ValueError, match="empty"):
        place_defect(source, mask & False, source, np.random.default_rng(0))
    with pytest.raises(ValueError, match="same size"):
        place_defect(source, mask[:50], source, np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (120, 80)])
def test_masks_cut_by_the_border_stay_at_the_border(shape):
    """A mask cut on one side touches this side or the opposite one only; one in a corner touches two sides."""
    rng = np.random.default_rng(0)
    source = rng.integers(90, 110, (90, 60, 3), dtype=np.uint8)
    target = rng.integers(90, 110, (*shape, 3), dtype=np.uint8)
    grid = np.mgrid[:90, :60]
    masks = {
        "top": _disc(90, 60, (0, 30), 9),
        "corner": _disc(90, 60, (88, 0), 12),
        "band": (grid[0] > 10) & (grid[0] < 25),
        "all": grid[0] >= 0,
    }
    touching = {"top": (True, False), "corner": (True, True), "band": (False, True), "all": (True, True)}
    for name, mask in masks.items():
        areas, middles = [], set()
        for seed in range(15):
            placed = place_defect(source, mask, target, np.random.default_rng(seed))
            rows, columns = placed.mask.any(1), placed.mask.any(0)
            assert (rows[0] or rows[-1], columns[0] or columns[-1]) == touching[name]
            if name == "band":
                assert columns.all()
            areas.append(placed.mask.mean() / mask.mean())
            middles.add((np.flatnonzero(rows).mean().round(), np.flatnonzero(columns).mean().round()))
        assert min(areas) > 0.6 and max(areas) < 1.5  # relative to the frame, after a scale of 0.8 to 1.2 per axis
        assert len(middles) >= {"top": 8, "corner": 8, "band": 8, "all": 1}[name]


@pytest.mark.parametrize("height", [255, 361])
def test_defect_nearly_as_high_as_its_image_is_placed(height):
    """Rounding may make the room beside the mask negative: frame / extent * extent exceeds the frame."""
    image = np.full((height, 40, 3), 100, np.uint8)
    for extent in (e for e in range(height // 2, height) if height / e * e > height):
        mask = np.zeros((height, 40), bool)
        mask[1 : 1 + extent, :9] = True
        assert place_defect(image, mask, image, np.random.default_rng(0), PlacementConfig(scale=(1.0, 2.5))).mask.any()
