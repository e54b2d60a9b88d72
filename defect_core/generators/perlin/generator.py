"""DRAEM-style defects: a translucent foreign texture inside a mask of thresholded Perlin noise.

Source: Zavrtanik et al. 2021, "DRAEM", section 3.1 and eq. 1, with the choices of its public code: 2^0 to 2^5 noise
cells, threshold 0.5, opacity of the normal image up to 0.8, three of nine colour changes. The paper takes textures from
the Describable Textures Dataset. Here the texture is the normal image, shuffled in blocks and changed in colour, so
that no download is needed. The blob nearest to the requested mask is used, so that the defect is on the product.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageOps
from scipy import ndimage

from defect_core.generators.base import Image, Mask, SampleRequest, SyntheticPair, check_request
from defect_core.generators.composite import composite
from defect_core.generators.perlin.config import CAPABILITIES, DraemPerlinConfig
from defect_core.generators.training_free import TrainingFreeGenerator

_ATTEMPTS = 8
# Number of colour changes per texture, and the largest rotation of the noise in degrees (public code).
_CHANGES_PER_TEXTURE, _MAX_ROTATION = 3, 90


class DraemPerlin(TrainingFreeGenerator[DraemPerlinConfig]):
    """Blends a foreign texture into a blob of Perlin noise near the requested mask."""

    name = "draem-perlin"
    capabilities = CAPABILITIES
    config_class = DraemPerlinConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`."""
        for request in requests:
            checked = check_request(request, self.defects)
            rng = np.random.default_rng(request.seed)
            mask = self._generate_mask(rng, checked.mask)
            opacity = float(rng.uniform(0, self.config.max_normal))
            normal = checked.normal_image.astype(np.float32)
            texture = self._generate_texture(rng, checked.normal_image)
            image = composite(checked.normal_image, opacity * normal + (1 - opacity) * texture, mask, 0)
            yield SyntheticPair(request.sample_id, image, mask, metadata={"normal_opacity": round(opacity, 4)})

    def _generate_mask(self, rng: np.random.Generator, requested: Mask) -> Mask:
        """Return the blob of noise nearest to the requested mask, or the requested mask if the noise has no blob."""
        height, width = requested.shape
        for _ in range(_ATTEMPTS):
            cells = 2 ** rng.integers(0, self.config.max_cells + 1, 2)
            noise = perlin_noise((height, width), (int(cells[0]), int(cells[1])), rng)
            angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
            rotated = ndimage.rotate(noise, angle, reshape=False, order=1, mode="nearest")
            blobs = ndimage.label(rotated > self.config.threshold, np.ones((3, 3)))
            labels, count = cast(tuple[NDArray[np.int32], int], blobs)
            if count:
                distance = ndimage.distance_transform_edt(~requested)
                nearest = int(np.argmin(ndimage.minimum(distance, labels, np.arange(1, count + 1)))) + 1
                return np.asarray(labels == nearest)
        return requested

    def _generate_texture(self, rng: np.random.Generator, image: Image) -> NDArray[np.float32]:
        side = self.config.blocks
        rows, columns = (np.array_split(np.arange(size), side) for size in image.shape[:2])
        shuffled = image[np.concatenate([rows[i] for i in rng.permutation(side)])]
        shuffled = shuffled[:, np.concatenate([columns[i] for i in rng.permutation(side)])]
        texture = PILImage.fromarray(np.ascontiguousarray(shuffled))
        for index in rng.choice(len(_COLOUR_CHANGES), _CHANGES_PER_TEXTURE, replace=False):
            texture = _COLOUR_CHANGES[index](texture, rng)
        return np.asarray(texture, np.float32)


def perlin_noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return gradient noise, float32 [H, W], about -0.7 to 0.7.

    Source: Perlin 2002, with the fade curve 6t^5 - 15t^4 + 10t^3.

    Args:
        shape: H and W.
        cells: number of lattice cells along each side.
        rng: chooses the directions of the gradients.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradient = np.stack([np.sin(angles), np.cos(angles)], -1)
    rows = (np.arange(shape[0]) + 0.5) * cells[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * cells[1] / shape[1]
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None]

    def corner(row: int, column: int) -> NDArray[np.float64]:
        vectors = gradient[np.ix_(top + row, left + column)]
        return vectors[..., 0] * (down - row) + vectors[..., 1] * (right - column)

    fade_down, fade_right = (t**3 * (t * (6 * t - 15) + 10) for t in (down, right))
    upper = corner(0, 0) * (1 - fade_right) + corner(0, 1) * fade_right
    lower = corner(1, 0) * (1 - fade_right) + corner(1, 1) * fade_right
    return (np.sqrt(2) * (upper * (1 - fade_down) + lower * fade_down)).astype(np.float32)


def _shift_hue(image: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
    values = np.array(image.convert("HSV"))
    values[..., 0] += np.uint8(rng.integers(20, 236))
    bands = [PILImage.fromarray(np.ascontiguousarray(values[..., i])) for i in range(3)]
    return PILImage.merge("HSV", bands).convert("RGB")


def _change_gamma(image: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
    gamma = float(rng.uniform(0.5, 2.0))
    return image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)


_COLOUR_CHANGES: tuple[Callable[[PILImage.Image, np.random.Generator], PILImage.Image], ...] = (
    _change_gamma,
    lambda p, rng: ImageEnhance.Brightness(p).enhance(float(rng.uniform(0.5, 1.5))),
    lambda p, rng: ImageEnhance.Sharpness(p).enhance(float(rng.uniform(0, 3))),
    _shift_hue,
    lambda p, rng: ImageOps.solarize(p, int(rng.integers(32, 129))),
    lambda p, rng: ImageOps.posterize(p, int(rng.integers(2, 6))),
    lambda p, rng: ImageOps.invert(p),
    lambda p, rng: ImageOps.autocontrast(p),
    lambda p, rng: ImageOps.equalize(p),
)

GENERATOR = DraemPerlin
