"""Crop-paste: a real defect's own pixels, moved onto a normal image.

The cheapest method that keeps the defect's look; every published comparison should hold it as its floor.
"""

from collections.abc import Iterator, Sequence

from defect_core.errors import InputError
from defect_core.generators.base import (
    SampleRequest,
    SyntheticPair,
    check_request,
)
from defect_core.generators.composite import paste
from defect_core.generators.crop_paste.config import CAPABILITIES, CropPasteConfig
from defect_core.generators.training_free import TrainingFreeGenerator


class CropPaste(TrainingFreeGenerator):
    """Pastes the source example's pixels under the placed mask; nothing is learned but the list of defects."""

    name = "crop-paste"
    capabilities = CAPABILITIES
    config_class = CropPasteConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        for request in requests:
            check_request(request, self.defects)
            if request.warped is None or request.source is None:
                raise InputError(f"request {request.sample_id}: crop-paste needs a source example to copy from")
            image = paste(
                request.normal_image, request.warped, request.mask, self.config.feather, self.config.match_colour
            )
            yield SyntheticPair(request.sample_id, image, request.mask)


GENERATOR = CropPaste
