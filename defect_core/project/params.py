"""The typed, validated view of a project's params.yaml.

Every error in the file is an `InputError` of one line that names the field and what is expected.
Each section is a settings model that is defined beside the code it configures. Nothing here imports torch: Dagster and
the command line read the parameters at start-up.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from defect_core.adaptation.config import AdaptConfig
from defect_core.backbones.compute import ComputeConfig
from defect_core.data.config import IngestConfig, SourceConfig, SplitConfig
from defect_core.data.placement_settings import ANY, PlacementSection
from defect_core.data.records import check_name
from defect_core.errors import InputError, InputErrors, suggest
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.detection.config import DetectorConfig
from defect_core.evaluation.release_config import ReleaseConfig
from defect_core.evaluation.segmentation.config import SegmenterConfig, SegmentUnifiedConfig
from defect_core.generators.registry import (
    Capabilities,
    GeneratorConfig,
    generator_capabilities,
    generator_config,
    generator_folder,
    generator_names,
)
from defect_core.metrics.config import ScoreConfig
from defect_core.project.arms import BASELINE_ARM, Arm, parse_arm
from defect_core.project.params_file import read_params_file
from defect_core.settings import Seed, Settings, describe_errors
from defect_core.synthesis.config import NormalsConfig, SynthesizeConfig, ZeroShotConfig


class Params(Settings):
    """All of params.yaml."""

    seed: Seed = 0
    """Base seed of the project."""
    owners: tuple[str, ...] = ("team:inspection",)
    """Owners of the Dagster assets: `team:NAME` or e-mail addresses."""
    products: tuple[str, ...] = ()
    """Products, each with an entry in `sources`."""
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Where the real images of each product come from."""
    generators: tuple[str, ...] = ("crop-paste", "disentangled-inversion")
    """Generators that are trained and sampled for every product."""
    arms: tuple[str, ...] = (BASELINE_ARM, "crop-paste", "disentangled-inversion")
    """What the downstream models are trained on (see `defect_core.project.arms`)."""
    backbone: str = "embedded"
    """`embedded`, a folder in the layout of diffusers, or a hub name."""
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    adapt: AdaptConfig | None = None
    finetune: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of each generator; see its README."""
    overrides: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Settings of a generator for one product; they replace those of `finetune`."""
    synthesize: SynthesizeConfig = Field(default_factory=SynthesizeConfig)
    placement: PlacementSection = Field(default_factory=dict)
    """Where defects may be placed: rules by product and defect type; see docs/data.md."""
    regenerations: dict[str, dict[str, Annotated[int, Field(ge=0)]]] = Field(default_factory=dict)
    """How often the set of a product and generator was requested anew; written by `defectory regenerate`."""
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    """Defect types that are generated on products without examples of them."""
    normals: NormalsConfig | None = None
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    segment: SegmenterConfig = Field(default_factory=SegmenterConfig)
    segment_unified: SegmentUnifiedConfig | None = None
    classify: ClassifierConfig | None = None
    detect: DetectorConfig | None = None
    release: ReleaseConfig | None = None

    def generator_settings(self, name: str, product: str | None = None) -> GeneratorConfig:
        """Return the validated settings of one generator; its own defaults apply where the file says nothing.

        Args:
            name: generator.
            product: if given, its entry in `overrides` replaces values of `finetune`.
        """
        override = self.overrides.get(product or "", {}).get(name)
        settings = self.finetune.get(name) or {}
        if override is None:
            return generator_config(name, settings, where="params.yaml: finetune")
        return generator_config(name, {**settings, **override}, where=f"params.yaml: overrides.{product}")

    def capabilities(self, name: str) -> Capabilities:
        """Return what a generator declares about itself with its settings."""
        return self.generator_settings(name).capabilities(generator_capabilities(name))

    def generator_folder(self, product: str, name: str) -> str:
        """Return the folder of a fitted generator: one per product, or one for the catalogue."""
        return generator_folder(product, name, self.capabilities(name))

    def borrowed_defects(self, product: str, generator: str) -> tuple[ZeroShotConfig, ...]:
        """Return the zero-shot defects of a product; none for a generator without this capability."""
        if not generator_capabilities(generator).zero_shot:
            return ()
        return tuple(entry for entry in self.zero_shot if entry.product == product)

    def arm(self, name: str) -> Arm:
        """Return what an arm is trained on. Raises InputError for an unknown one."""
        return parse_arm(name, self.generators)

    def regeneration(self, product: str, generator: str) -> int:
        """Return how often a set was requested anew with a new seed (`defectory regenerate`)."""
        return self.regenerations.get(product, {}).get(generator, 0)


def load_params(path: Path, name: str = "params.yaml") -> Params:
    """Read and check params.yaml.

    Args:
        path: the file.
        name: name of the file in messages.

    Raises:
        InputError: the file cannot be read (see `read_params_file`), or fields have a wrong type, value or name.
    """
    raw = read_params_file(path, name)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise InputErrors([f"{name}: {field}: {why}" for field, why in describe_errors(error, Params, raw)]) from None
    problems = []
    for check in (_check_names, _check_generators, _check_per_product, _check_zero_shot, _check_arms):
        try:
            check(params)
        except _ParamsError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InputErrors(problems)
    return params


class _ParamsError(Exception):
    """A contradiction between fields of params.yaml."""


def _check_names(params: Params) -> None:
    for owner in params.owners:
        if not re.fullmatch(r"team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
            raise _ParamsError(f"owners: {owner!r}; expected team:NAME or an e-mail address")
    for product in params.products:
        try:
            check_name(product, "products")
        except InputError as error:
            raise _ParamsError(str(error)) from None
        if product not in params.sources:
            raise _ParamsError(f"sources.{product}: missing; every product needs a source with path and layout")
    for product in params.sources:
        if product not in params.products:
            raise _ParamsError(f"products: {product!r} has a source but is not listed; add it or remove the source")
    for field in ("products", "generators", "arms"):
        values = getattr(params, field)
        if len(set(values)) != len(values):
            raise _ParamsError(f"{field}: a name is listed twice; expected each once")


def _check_generators(params: Params) -> None:
    for field, names in (("generators", params.generators), ("finetune", params.finetune)):
        for name in names:
            if name not in generator_names():
                raise _ParamsError(f"{field}: generator {name!r} is unknown; {suggest(name, generator_names())}")
            try:
                params.generator_settings(name)
            except InputError as error:
                raise _ParamsError(str(error).removeprefix("params.yaml: ")) from None
    if params.normals is not None and not any(
        generator_capabilities(name).generates_normals for name in params.generators
    ):
        raise _ParamsError("normals: no generator in generators generates normal images; expected one such as seas")


def _check_per_product(params: Params) -> None:
    """Check the sections that are keyed by product and generator."""
    for product in params.placement:
        if product not in (*params.products, ANY):
            raise _ParamsError(f"placement.{product}: no such product; {suggest(product, params.products)}")
    for field, cells in (("overrides", params.overrides), ("regenerations", params.regenerations)):
        for product, by_generator in cells.items():
            if product not in params.products:
                raise _ParamsError(f"{field}.{product}: no such product; {suggest(product, params.products)}")
            for name in by_generator:
                if name not in params.generators:
                    raise _ParamsError(
                        f"{field}.{product}.{name}: no such generator; {suggest(name, params.generators)}"
                    )
                if field == "overrides" and params.capabilities(name).scope == "catalogue":
                    raise _ParamsError(
                        f"overrides.{product}.{name}: is trained on all products at once; expected its settings "
                        f"in finetune.{name}"
                    )
                try:
                    params.generator_settings(name, product)
                except InputError as error:
                    raise _ParamsError(str(error).removeprefix("params.yaml: ")) from None


def _check_zero_shot(params: Params) -> None:
    for entry in params.zero_shot:
        for key, name in (("product", entry.product), ("from", entry.lender)):
            if name not in params.products:
                raise _ParamsError(f"zero_shot: {key}: no product {name!r}; {suggest(name, params.products)}")
        if entry.product == entry.lender:
            raise _ParamsError(f"zero_shot: {entry.product} lends to itself; expected another product in from")
    if params.zero_shot and not any(generator_capabilities(name).zero_shot for name in params.generators):
        raise _ParamsError("zero_shot: no generator in generators can do this; expected one such as defectdiffu")
    if len({(entry.product, entry.defect) for entry in params.zero_shot}) < len(params.zero_shot):
        raise _ParamsError("zero_shot: a defect is listed twice for one product; expected each once")


def _check_arms(params: Params) -> None:
    for arm in params.arms:
        try:
            params.arm(arm)
        except InputError as error:
            raise _ParamsError(f"arms: {error}") from None
    if params.release is None:
        return
    offered = [arm for arm in params.arms if arm != BASELINE_ARM]
    if not offered or BASELINE_ARM not in params.arms:
        raise _ParamsError(f"release: expected {BASELINE_ARM} and at least one other arm in arms")
    if params.release.arm not in ("best", *offered):
        raise _ParamsError(
            f"release.arm: {params.release.arm!r} is no arm with synthetic pairs; expected best or one of "
            f"{', '.join(offered)}"
        )
