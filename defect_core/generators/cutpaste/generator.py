"""CutPaste: a rectangle of the normal image, jittered in colour and pasted where a defect was to be.

Source: Li et al. 2021, "CutPaste", section 2 and appendix (sizes, scars). The paper pastes anywhere; here the middle of
the requested mask is the place, so that the patch lies on the product. The requested shape and the defect type have
no say in it: whatever this arm gains, it gains without having seen a defect.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from defect_core.generators.base import (
    Image,
    Mask,
    SampleRequest,
    SyntheticPair,
    check_request,
)
from defect_core.generators.composite import composite
from defect_core.generators.cutpaste.config import CAPABILITIES, CutPasteConfig
from defect_core.generators.training_free import TrainingFreeGenerator


class CutPaste(TrainingFreeGenerator):
    """Nothing is learned but the list of defects, whose masks say where patches go."""

    name = "cutpaste"
    capabilities = CAPABILITIES
    config_class = CutPasteConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        for request in requests:
            check_request(request, self.defects)
            rng = np.random.default_rng(request.seed)
            image = request.normal_image
            place = [float(places.mean()) for places in np.nonzero(request.mask)]
            scar = bool(rng.random() < self.config.scar_share)
            mask = rectangle(image.shape[:2], place, *self._sides(rng, image.shape[:2], scar))
            pasted = self._jittered(rng, _moved(rng, image, mask))
            yield SyntheticPair(request.sample_id, composite(image, pasted, mask, 0), mask, metadata={"scar": scar})

    def _sides(self, rng: np.random.Generator, shape: tuple[int, int], scar: bool) -> tuple[float, float, float]:
        """Height and width in pixels, and the turn in degrees."""
        config = self.config
        if scar:
            side = min(shape)
            return side * rng.uniform(*config.scar_length), side * rng.uniform(*config.scar_width), rng.uniform(-45, 45)
        area = shape[0] * shape[1] * rng.uniform(*config.area)
        # the paper draws evenly from both sides of 1, so that tall and wide patches are as likely
        ratio = rng.uniform(1, config.aspect) if rng.random() < 0.5 else rng.uniform(1 / config.aspect, 1)
        return float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio)), 0.0

    def _jittered(self, rng: np.random.Generator, image: Image) -> NDArray[np.float32]:
        brightness, contrast = 1 + self.config.jitter * rng.uniform(-1, 1, 2)
        changed = image.astype(np.float32) * brightness
        mean = changed.mean((0, 1))
        return np.clip((changed - mean) * contrast + mean, 0, 255)


def rectangle(shape: tuple[int, int], centre: Sequence[float], height: float, width: float, turn: float) -> Mask:
    """A filled rectangle, bool [H, W], cut at the image's edge; never empty while its centre is inside.

    Args:
        centre: row and column. height, width: in pixels, at least one is taken. turn: degrees.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    angle = np.deg2rad(turn)
    down, right = rows - centre[0], columns - centre[1]
    along, across = down * np.cos(angle) + right * np.sin(angle), right * np.cos(angle) - down * np.sin(angle)
    mask = (np.abs(along) <= max(1.0, height / 2)) & (np.abs(across) <= max(1.0, width / 2))
    return np.asarray(mask)


def _moved(rng: np.random.Generator, image: Image, mask: Mask) -> Image:
    """The image shifted so that another part of it lies under the mask."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    shifts = []
    for size, part in zip(mask.shape, box, strict=True):
        target = int(rng.integers(0, size - (part.stop - part.start) + 1))
        shifts.append(part.start - target)
    return np.roll(image, shifts, (0, 1))


GENERATOR = CutPaste
