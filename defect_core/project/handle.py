"""The project of the Python API: read a project's results and generators from a notebook."""

from pathlib import Path
from typing import TYPE_CHECKING

from defect_core.errors import InputError, suggest
from defect_core.generators.base import Example
from defect_core.project.examples import load_examples
from defect_core.project.paths import Project, synthetic_folder
from defect_core.project.synthesis import load_project_generator
from defect_core.synthesis.defect_generator import DefectGenerator

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


class ProjectHandle(Project):
    """A project folder with what its stages wrote."""

    def load_generator(self, product: str, generator: str) -> DefectGenerator:
        """Return a generator that the stage `finetune` trained, with the training examples of the product.

        Raises:
            InputError: an unknown product or generator, or one that is not trained.
        """
        self._check(product, generator)
        if not self.path(self.params.generator_folder(product, generator)).is_dir():
            raise InputError(
                f"{self.params.generator_folder(product, generator)}: missing; run `defectory run --product {product} "
                f"--generator {generator}` first"
            )
        return DefectGenerator(load_project_generator(self, product, generator), self.examples(product))

    def examples(self, product: str, split: str = "train") -> list[Example]:
        """Return the real images of a product on one side of its split, `train` or `test`."""
        self._check(product)
        return load_examples(self, product, split)

    def manifest(self, product: str, generator: str) -> "pd.DataFrame":
        """Return the manifest of a synthetic set: one row per sample, accepted or rejected."""
        from defect_core.data.manifest import read_manifest

        self._check(product, generator)
        return read_manifest(self.path(synthetic_folder(product, generator)) / "manifest.parquet")

    def _check(self, product: str, generator: str | None = None) -> None:
        if product not in self.params.products:
            raise InputError(f"product {product!r} is not in params.yaml; {suggest(product, self.params.products)}")
        if generator is not None and generator not in self.params.generators:
            hint = suggest(generator, self.params.generators)
            raise InputError(f"generator {generator!r} is not in params.yaml; {hint}")


def open_project(folder: str | Path = ".") -> ProjectHandle:
    """Return the project in a folder or above it.

    Raises:
        InputError: there is no params.yaml.
    """
    return ProjectHandle(Project.find(Path(folder)).root)
