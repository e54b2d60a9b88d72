"""The base class of generators without training, which need only their settings and the list of defect types."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self

from defect_core.generators.base import (
    ConfigT,
    Example,
    Generator,
    check_config,
    read_description,
    write_description,
    write_training,
)
from defect_core.generators.registry import GeneratorConfig

if TYPE_CHECKING:
    from defect_core.backbones.load import Backbone


class TrainingFreeGenerator(Generator, Generic[ConfigT]):
    """Base class of generators that learn only which defect types exist.

    A subclass defines `name`, `capabilities`, `config_class` and `sample`.

    Attributes:
        config_class: class of the settings.
        config: the settings.
        defects: the fitted defect types.
    """

    config_class: type[ConfigT]

    def __init__(self, config: ConfigT, defects: Sequence[str] = ()) -> None:
        self.config = config
        self.defects = tuple(defects)

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: "Backbone | None" = None) -> Self:
        """Return a generator that is not fitted; see `Generator.create`."""
        return cls(check_config(cls.name, config, cls.config_class))

    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Record the defect types of the examples that have a mask."""
        self.defects = tuple(sorted({example.defect for example in examples if example.mask is not None}))

    def save(self, folder: Path) -> None:
        """Write `generator.json` with the settings and the defect types, and `training.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, self.name, self.config, defects=list(self.defects))
        write_training(folder, {"loss": []})

    @classmethod
    def load(cls, folder: Path, backbone: "Backbone | None" = None) -> Self:
        """Return the generator that `save` wrote; see `Generator.load`."""
        description = read_description(folder, cls.name)
        return cls(cls.config_class.model_validate(description["config"]), description["defects"])
