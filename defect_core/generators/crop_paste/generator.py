"""Crop-paste: the pixels of a real defect, moved onto a normal image.

It is the cheapest method that keeps the appearance of real defects, and therefore the baseline of every comparison.
"""

from collections.abc import Iterator, Sequence

from defect_core.errors import InputError
from defect_core.generators.base import SampleRequest, SyntheticPair, check_request
from defect_core.generators.composite import paste
from defect_core.generators.crop_paste.config import CAPABILITIES, CropPasteConfig
from defect_core.generators.training_free import TrainingFreeGenerator


class CropPaste(TrainingFreeGenerator[CropPasteConfig]):
    """Pastes the pixels of the source example inside the placed mask."""

    name = "crop-paste"
    capabilities = CAPABILITIES
    config_class = CropPasteConfig

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request; see `Generator.sample`.

        Raises:
            InputError: a request cannot be answered or has no source example.
        """
        for request in requests:
            checked = check_request(request, self.defects)
            if checked.warped is None or checked.source is None:
                raise InputError(f"request {request.sample_id}: has no source example; expected one for crop-paste")
            image = paste(
                checked.normal_image, checked.warped, checked.mask, self.config.feather, self.config.match_colour
            )
            yield SyntheticPair(request.sample_id, image, checked.mask)


GENERATOR = CropPaste
