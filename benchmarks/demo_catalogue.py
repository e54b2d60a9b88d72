"""The demo products as examples in memory, with the split of the demo, and a DefectDiffu fitted on them."""

from collections.abc import Sequence
from pathlib import Path

from defect_core.backbones.load import load_backbone
from defect_core.data.demo.render import PER_DEFECT, TEST_NORMAL, TRAIN_NORMAL, demo_defects, render_demo_image
from defect_core.data.records import GOOD
from defect_core.generators.base import Example
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.generator import DefectDiffu

TRAIN_DEFECTS = 2


def train_examples(product: str, without: Sequence[str] = ()) -> list[Example]:
    """Return 60 normal images and two images of each defect type that is not in `without`."""
    examples = [_example(product, GOOD, f"train/{GOOD}", index) for index in range(TRAIN_NORMAL)]
    for defect in demo_defects(product):
        if defect not in without:
            examples += [_example(product, defect, defect, index) for index in range(TRAIN_DEFECTS)]
    return examples


def test_examples(product: str, defect: str) -> list[Example]:
    """Return the 25 test images of a defect type and the 20 normal test images."""
    examples = [_example(product, defect, defect, index) for index in range(TRAIN_DEFECTS, PER_DEFECT)]
    return examples + [_example(product, GOOD, f"test/{GOOD}", index) for index in range(TEST_NORMAL)]


def load_or_fit(examples: Sequence[Example], folder: Path, config: DefectDiffuConfig, seed: int = 0) -> DefectDiffu:
    """Return the generator saved in `folder`; if there is none, fit one on the examples and save it there."""
    backbone = load_backbone("embedded")
    if (folder / "generator.json").is_file():
        return DefectDiffu.load(folder, backbone)
    generator = DefectDiffu.create(config, backbone)
    generator.fit(examples, folder / "work", seed)
    generator.save(folder)
    return generator


def _example(product: str, defect: str, kind: str, index: int) -> Example:
    rendered = render_demo_image(product, kind, 0, index)
    mask = None if defect == GOOD else rendered.mask
    return Example(product, defect, rendered.image, mask, f"{kind}/{index:03}.png")
