"""Crop-paste: a real defect's own pixels, moved onto a normal image.

The cheapest method that keeps the defect's look; every published comparison should hold it as its floor.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.base import (
    Example,
    Generator,
    SampleRequest,
    SyntheticPair,
    check_request,
    read_description,
    write_description,
)
from defect_core.generators.composite import paste
from defect_core.generators.crop_paste.config import PROMISES, Config
from defect_core.generators.registry import GeneratorConfig


class CropPaste(Generator):
    """Pastes the source example's pixels under the placed mask; nothing is learned but the list of defects."""

    name = "crop-paste"
    promises = PROMISES

    def __init__(self, config: Config, defects: Sequence[str]) -> None:
        self.config = config
        self.defects = tuple(defects)

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Any) -> "CropPaste":
        assert isinstance(config, Config)
        return cls(config, ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        self.defects = tuple(sorted({example.defect for example in examples if example.mask is not None}))

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        for request in requests:
            check_request(request, self.defects)
            if request.warped is None or request.source is None:
                raise InputError(f"request {request.sample_id}: crop-paste needs a source example to copy from")
            image = paste(
                request.normal_image, request.warped, request.mask, self.config.feather, self.config.match_colour
            )
            yield SyntheticPair(request.sample_id, image, request.mask)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, self.name, self.config, defects=list(self.defects))
        (folder / "training.json").write_text(json.dumps({"loss": []}) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Any) -> "CropPaste":
        description = read_description(folder, cls.name)
        return cls(Config.model_validate(description["config"]), description["defects"])


METHOD = CropPaste
