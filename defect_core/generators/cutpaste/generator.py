"""CutPaste: a rectangle of the normal image, with changed colours, pasted at another place of the same image.

Source: Li et al. 2021, "CutPaste", section 2 and appendix (sizes, scars). The paper pastes at a random place. Here the
centre is that of the requested mask, so that the patch is on the product. The shape of the mask and the defect type
have no effect.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.generators.base import Image, Mask, SampleRequest, SyntheticPair, check_request
from defect_core.generators.composite import composite
from defect_core.generators.cutpaste.config import CAPABILITIES, CutPasteConfig
from defect_core.generators.training_free import TrainingFreeGenerator

_MAX_SCAR_ANGLE = 45  # degrees, as in the paper


class CutPaste(TrainingFreeGenerator[CutPasteConfig]):
    """Pastes a rectangle of the normal image at the place of the requested mask."""

    name = "cutpaste"
    capabilities = CAPABILITIES
    config_class = CutPasteConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`."""
        for request in requests:
            checked = check_request(request, self.defects)
            rng = np.random.default_rng(request.seed)
            image = checked.normal_image
            height, width = checked.mask.shape
            rows, columns = np.nonzero(checked.mask)
            is_scar = bool(rng.random() < self.config.scar_fraction)
            size = self._choose_size(rng, height, width, is_scar)
            mask = rectangle_mask((height, width), (float(rows.mean()), float(columns.mean())), *size)
            pasted = self._jitter(rng, _shift_randomly(rng, image, mask))
            yield SyntheticPair(request.sample_id, composite(image, pasted, mask, 0), mask, metadata={"scar": is_scar})

    def _choose_size(
        self, rng: np.random.Generator, height: int, width: int, is_scar: bool
    ) -> tuple[float, float, float]:
        """Return height and width of the rectangle in pixels, and its angle in degrees."""
        config = self.config
        if is_scar:
            side = min(height, width)
            length, thickness = side * rng.uniform(*config.scar_length), side * rng.uniform(*config.scar_width)
            return length, thickness, rng.uniform(-_MAX_SCAR_ANGLE, _MAX_SCAR_ANGLE)
        area = height * width * rng.uniform(*config.area)
        # As in the paper, tall and wide patches have the same probability.
        ratio = rng.uniform(1, config.aspect) if rng.random() < 0.5 else rng.uniform(1 / config.aspect, 1)
        return float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio)), 0.0

    def _jitter(self, rng: np.random.Generator, image: Image) -> NDArray[np.float32]:
        brightness, contrast = 1 + self.config.jitter * rng.uniform(-1, 1, 2)
        changed = image.astype(np.float32) * brightness
        mean = changed.mean((0, 1))
        return np.clip((changed - mean) * contrast + mean, 0, 255)


def rectangle_mask(
    shape: tuple[int, int], centre: tuple[float, float], height: float, width: float, angle: float
) -> Mask:
    """Return a filled rectangle, bool [H, W], cropped at the image's edge; nonempty if its centre is inside.

    Args:
        shape: H and W.
        centre: row and column.
        height: in pixels; the rectangle is at least one pixel high.
        width: in pixels; the rectangle is at least one pixel wide.
        angle: rotation in degrees.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radians = np.deg2rad(angle)
    down, right = rows - centre[0], columns - centre[1]
    along = down * np.cos(radians) + right * np.sin(radians)
    across = right * np.cos(radians) - down * np.sin(radians)
    mask = (np.abs(along) <= max(1.0, height / 2)) & (np.abs(across) <= max(1.0, width / 2))
    return np.asarray(mask)


def _shift_randomly(rng: np.random.Generator, image: Image, mask: Mask) -> Image:
    """Return the image shifted cyclically so that a random part of it is inside the mask."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    shifts = []
    for size, part in zip(mask.shape, box, strict=True):
        target = int(rng.integers(0, size - (part.stop - part.start) + 1))
        shifts.append(part.start - target)
    return np.roll(image, shifts, (0, 1))


GENERATOR = CutPaste
