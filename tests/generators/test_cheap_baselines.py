"""CutPaste and DRAEM-style defects: their own behaviour. `test_contract.py` tests the capabilities."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.cutpaste.generator import CutPaste, rectangle_mask
from defect_core.generators.perlin.generator import DraemPerlin, perlin_noise
from defect_core.generators.registry import generator_config


def _generator(kind, **settings):
    return kind(generator_config(kind.name, settings), ("dent",))


def _requests(count, mask):
    image = np.random.default_rng(0).integers(0, 255, (*mask.shape, 3), np.uint8)
    source = Example("plate", "dent", image, mask, "dent/0.png")
    return [SampleRequest(str(i), "plate", "dent", i, image, mask, None, source, image) for i in range(count)]


@pytest.fixture
def spot():
    mask = np.zeros((80, 100), bool)
    mask[20:28, 60:72] = True
    return mask


def test_patches_have_the_sizes_of_the_paper_and_cover_the_mask_centre(spot):
    patches = list(_generator(CutPaste, scar_fraction=0).sample(_requests(60, spot)))
    areas = [pair.mask.mean() for pair in patches]
    assert 0.015 < min(areas) < 0.05 < 0.1 < max(areas) < 0.16
    for pair in patches:
        assert pair.mask[24, 66]
    boxes = [ndimage.find_objects(pair.mask.astype(int))[0] for pair in patches]
    ratios = [(rows.stop - rows.start) / (columns.stop - columns.start) for rows, columns in boxes]
    assert min(ratios) < 0.6 and max(ratios) > 1.7


def test_pasted_pixels_come_from_the_normal_image(spot):
    request = _requests(1, spot)[0]
    pair = next(iter(_generator(CutPaste, scar_fraction=0, jitter=0).sample([request])))
    rows, columns = ndimage.find_objects(pair.mask.astype(int))[0]
    patch = pair.image[rows, columns]
    windows = np.lib.stride_tricks.sliding_window_view(request.normal_image, patch.shape)
    assert (windows == patch).all((3, 4, 5)).any()


def test_scars_are_thin_and_rotated(spot):
    scars = [pair.mask for pair in _generator(CutPaste, scar_fraction=1).sample(_requests(30, spot))]
    assert max(mask.sum() for mask in scars) < 80
    straight = rectangle_mask((40, 40), (20, 20), 20, 4, 0)
    rotated = rectangle_mask((40, 40), (20, 20), 20, 4, 45)
    assert straight.any(1).sum() == 21 and 13 <= rotated.any(1).sum() <= 19
    assert rotated.any(0).sum() > straight.any(0).sum()
    assert rectangle_mask((9, 9), (0, 0), 0.1, 0.1, 30).any()


def test_perlin_noise_is_smooth_centred_and_0_at_lattice_points():
    rng = np.random.default_rng(0)
    noise = perlin_noise((256, 256), (4, 8), rng)
    assert noise.dtype == np.float32 and abs(noise.mean()) < 0.1 and 0.4 < np.abs(noise).max() <= 1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.06 and np.abs(np.diff(noise, axis=1)).max() < 0.12
    corners = noise[np.ix_([64, 128, 192], [32, 64, 96])]
    assert np.abs(corners).max() < 0.05


def test_each_blob_is_one_component_near_the_mask(spot):
    pairs = list(_generator(DraemPerlin).sample(_requests(40, spot)))
    masks = [pair.mask for pair in pairs]
    assert all(ndimage.label(mask, np.ones((3, 3)))[1] == 1 for mask in masks)
    distance = ndimage.distance_transform_edt(~spot)
    assert np.median([distance[mask].min() for mask in masks]) < 10
    assert len({mask.tobytes() for mask in masks}) > 30
    assert (
        min(p.metadata["normal_opacity"] for p in pairs) >= 0
        and max(p.metadata["normal_opacity"] for p in pairs) <= 0.8
    )


def test_noise_below_the_threshold_gives_the_requested_mask(spot):
    pair = next(iter(_generator(DraemPerlin, threshold=0.69, max_cells=1).sample(_requests(1, spot))))
    assert pair.mask.any()
    flat = _generator(DraemPerlin)
    object.__setattr__(flat.config, "threshold", 5.0)
    assert (next(iter(flat.sample(_requests(1, spot)))).mask == spot).all()
