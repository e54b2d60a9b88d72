"""What methods without any training share: they keep the list of defects they may be asked for, and their settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from defect_core.generators.base import Example, Generator, read_description, write_description
from defect_core.generators.registry import GeneratorConfig


class TrainingFreeGenerator(Generator):
    """Nothing is learned but the list of defects; a subclass has `name`, `capabilities`, `config_class` and `sample`."""

    config_class: ClassVar[type[GeneratorConfig]]

    def __init__(self, config: GeneratorConfig, defects: Sequence[str]) -> None:
        self.config: Any = config
        self.defects = tuple(defects)

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Any) -> Self:
        assert isinstance(config, cls.config_class)
        return cls(config, ())

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        self.defects = tuple(sorted({example.defect for example in examples if example.mask is not None}))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, self.name, self.config, defects=list(self.defects))
        (folder / "training.json").write_text(json.dumps({"loss": []}) + "\n")

    @classmethod
    def load(cls, folder: Path, backbone: Any) -> Self:
        description = read_description(folder, cls.name)
        return cls(cls.config_class.model_validate(description["config"]), description["defects"])
