"""The stain generator: it darkens the normal image inside the requested mask."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from defect_core.generators.base import SampleRequest, SyntheticPair, check_request
from defect_core.generators.composite import composite
from defect_core.generators.training_free import TrainingFreeGenerator
from stain_generator.config import CAPABILITIES, StainConfig

MIN_DARKNESS = 0.5  # the darkness of a sample is at least this fraction of `darkness`


class StainGenerator(TrainingFreeGenerator[StainConfig]):
    """Darkens the normal image inside the requested mask, with a soft edge."""

    name = "stain"
    capabilities = CAPABILITIES
    config_class = StainConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request, in the order of the requests."""
        for request in requests:
            checked = check_request(request, self.defects)
            strength = 1.0 if checked.strength is None else checked.strength
            # The seed of the request is the only source of randomness.
            rng = np.random.default_rng(request.seed)
            darkness = strength * self.config.darkness * rng.uniform(MIN_DARKNESS, 1)
            opacity = ndimage.gaussian_filter(checked.mask.astype(np.float32), self.config.blur)[..., None]
            stained = checked.normal_image * (1 - np.clip(darkness * opacity, 0, 1))
            image = composite(checked.normal_image, stained, checked.mask, feather=0)
            yield SyntheticPair(request.sample_id, image, checked.mask, metadata={"strength": strength})


GENERATOR = StainGenerator
