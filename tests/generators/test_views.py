"""Views of real examples: their augmentation."""

import numpy as np
import pytest
from scipy import ndimage

from defect_core.generators.base import Example
from defect_core.generators.views import augment_examples


def _texture(stretch: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((96, 96)), (stretch, 1))
    return np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize("canvas", ["whole", "local"])
def test_only_textures_without_a_direction_are_rotated_by_90_degrees(canvas):
    ratios = {}
    for stretch in (1, 12):  # 12 gives a texture with vertical lines
        example = Example("tile", "good", _texture(stretch), None, "0")
        views = augment_examples([example], 24, canvas, 2.0, 32, 64, np.random.default_rng(0))
        slopes = [np.gradient(view.image.mean(-1)) for view in views]
        ratios[stretch] = [np.square(down).mean() / np.square(across).mean() for down, across in slopes]
        assert len({view.image.tobytes() for view in views}) == len(views)
    assert max(ratios[12]) < 0.3
    assert min(ratios[1]) > 0.5
