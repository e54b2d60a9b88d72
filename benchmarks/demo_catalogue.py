"""The demo products as examples in memory, divided as the demo divides them; a DefectDiffu fitted on them and kept."""

from collections.abc import Sequence
from pathlib import Path

from defect_core.backbones import load_backbone
from defect_core.data.demo import PER_DEFECT, TEST_GOOD, TRAIN_GOOD, demo_defects, draw_image
from defect_core.data.records import GOOD
from defect_core.generators.base import Example
from defect_core.generators.defectdiffu.config import Config
from defect_core.generators.defectdiffu.generator import DefectDiffu

TRAIN_DEFECTS = 2


def train_examples(product: str, without: Sequence[str] = ()) -> list[Example]:
    """60 good images and two of each defect, none of the defects in `without`."""
    made = [_example(product, GOOD, f"train/{GOOD}", index) for index in range(TRAIN_GOOD)]
    for defect in demo_defects(product):
        if defect not in without:
            made += [_example(product, defect, defect, index) for index in range(TRAIN_DEFECTS)]
    return made


def held_back(product: str, defect: str) -> list[Example]:
    """The 25 images of a defect that the demo tests on, and its 20 good test images."""
    made = [_example(product, defect, defect, index) for index in range(TRAIN_DEFECTS, PER_DEFECT)]
    return made + [_example(product, GOOD, f"test/{GOOD}", index) for index in range(TEST_GOOD)]


def fitted(examples: Sequence[Example], folder: Path, config: Config, seed: int = 0) -> DefectDiffu:
    """The generator in `folder`, or one fitted on the examples and saved there."""
    backbone = load_backbone("embedded")
    if (folder / "generator.json").is_file():
        return DefectDiffu.load(folder, backbone)
    made = DefectDiffu.create(config, backbone)
    made.fit(examples, folder / "work", seed)
    made.save(folder)
    return made


def _example(product: str, defect: str, kind: str, index: int) -> Example:
    drawn = draw_image(product, kind, 0, index)
    return Example(product, defect, drawn.image, None if defect == GOOD else drawn.mask, f"{kind}/{index:03}.png")
