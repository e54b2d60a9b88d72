"""DRAEM-style defects: a foreign texture, half transparent, under a thresholded Perlin-noise mask.

Source: Zavrtanik et al. 2021, "DRAEM", section 3.1 and eq. 1, with its public code's choices (cells of 2^0 to 2^6,
threshold 0.5, transparency up to 0.8, three of nine colour changes). The paper takes textures from the Describable
Textures Dataset; here the normal image itself is shuffled in blocks and changed in colour, so nothing is downloaded.
The component nearest to the requested mask is kept, so that the defect lies on the product.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageOps
from scipy import ndimage

from defect_core.generators.base import (
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
)
from defect_core.generators.composite import composite
from defect_core.generators.perlin.config import CAPABILITIES, DraemPerlinConfig
from defect_core.generators.training_free import TrainingFreeGenerator

_TRIES = 8


class DraemPerlin(TrainingFreeGenerator):
    """Nothing is learned but the list of defects, whose masks say where blobs go."""

    name = "draem-perlin"
    capabilities = CAPABILITIES
    config_class = DraemPerlinConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        for request in requests:
            check_request(request, self.defects)
            rng = np.random.default_rng(request.seed)
            mask = self._mask(rng, request.mask)
            share = float(rng.uniform(0, self.config.max_normal))
            normal = request.normal_image.astype(np.float32)
            texture = self._texture(rng, request.normal_image)
            image = composite(request.normal_image, share * normal + (1 - share) * texture, mask, 0)
            yield SyntheticPair(request.sample_id, image, mask, metadata={"normal_share": round(share, 4)})

    def _mask(self, rng: np.random.Generator, wanted: Mask) -> Mask:
        for _ in range(_TRIES):
            cells = 2 ** rng.integers(0, self.config.max_cells + 1, 2)
            noise = perlin_noise(wanted.shape, (int(cells[0]), int(cells[1])), rng)
            turned = ndimage.rotate(noise, rng.uniform(-90, 90), reshape=False, order=1, mode="nearest")
            labels, count = ndimage.label(turned > self.config.threshold, np.ones((3, 3)))
            if count:
                # every pixel's distance to the requested mask; the component with the nearest pixel wins
                distance = ndimage.distance_transform_edt(~wanted)
                nearest = int(np.argmin(ndimage.minimum(distance, labels, np.arange(1, count + 1)))) + 1
                return np.asarray(labels == nearest)
        return wanted

    def _texture(self, rng: np.random.Generator, image: Image) -> NDArray[np.float32]:
        side = self.config.blocks
        rows, columns = (np.array_split(np.arange(size), side) for size in image.shape[:2])
        shuffled = image[np.concatenate([rows[i] for i in rng.permutation(side)])]
        shuffled = shuffled[:, np.concatenate([columns[i] for i in rng.permutation(side)])]
        picture = PILImage.fromarray(np.ascontiguousarray(shuffled))
        for change in rng.choice(len(_CHANGES), 3, replace=False):
            picture = _CHANGES[change](picture, rng)
        return np.asarray(picture, np.float32)


def perlin_noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Gradient noise float32 [H, W], about -0.7 to 0.7; `cells` lattice cells along each side.

    Source: Perlin 2002, with the fade curve 6t^5 - 15t^4 + 10t^3.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradient = np.stack([np.sin(angles), np.cos(angles)], -1)
    rows = (np.arange(shape[0]) + 0.5) * cells[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * cells[1] / shape[1]
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None]

    def corner(below: int, beside: int) -> NDArray[np.float64]:
        vectors = gradient[np.ix_(top + below, left + beside)]
        return vectors[..., 0] * (down - below) + vectors[..., 1] * (right - beside)

    fade_down, fade_right = (t**3 * (t * (6 * t - 15) + 10) for t in (down, right))
    upper = corner(0, 0) * (1 - fade_right) + corner(0, 1) * fade_right
    lower = corner(1, 0) * (1 - fade_right) + corner(1, 1) * fade_right
    return (np.sqrt(2) * (upper * (1 - fade_down) + lower * fade_down)).astype(np.float32)


def _shift_hue(picture: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
    values = np.array(picture.convert("HSV"))
    values[..., 0] += np.uint8(rng.integers(20, 236))
    bands = [PILImage.fromarray(np.ascontiguousarray(values[..., i])) for i in range(3)]
    return PILImage.merge("HSV", bands).convert("RGB")


def _change_gamma(picture: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
    gamma = float(rng.uniform(0.5, 2.0))
    return picture.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)


_CHANGES = (
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
