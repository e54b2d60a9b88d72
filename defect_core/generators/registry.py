"""The registry: the names of all generators, what each declares about itself, and where its code is.

A generator is a package with two modules:

- `config.py` defines `CAPABILITIES`, a `Capabilities`, and `CONFIG`, its subclass of `GeneratorConfig`. It must not
  import torch, because the command line reads it at every start.
- `generator.py` defines `GENERATOR`, its subclass of `defect_core.generators.base.Generator`.

An installed distribution adds a generator with an entry point in the group `defectory.generators` that names such a
package. `docs/examples/third_party_generator` is a complete example:

    [project.entry-points."defectory.generators"]
    stain = "stain_generator"
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from defect_core.errors import InputError, InputErrors, suggest
from defect_core.settings import Settings, describe_errors

if TYPE_CHECKING:
    from defect_core.generators.base import Generator

ENTRY_POINT_GROUP = "defectory.generators"
BUILT_IN = {
    "anomaly-diffusion": "defect_core.generators.anomaly_diffusion",
    "cadiff": "defect_core.generators.cadiff",
    "crop-paste": "defect_core.generators.crop_paste",
    "cutpaste": "defect_core.generators.cutpaste",
    "defectdiffu": "defect_core.generators.defectdiffu",
    "disentangled-inversion": "defect_core.generators.disentangled_inversion",
    "draem-perlin": "defect_core.generators.perlin",
    "seas": "defect_core.generators.seas",
}


class GeneratorConfig(Settings):
    """Base class of every generator's settings."""

    def capabilities(self, declared: "Capabilities") -> "Capabilities":
        """Return what the generator declares about itself with these settings.

        Args:
            declared: what its package declares, for the defaults.
        """
        return declared


@dataclass(frozen=True)
class Capabilities:
    """What a generator declares about itself. The tests of the contract check every registered generator against it.

    Attributes:
        scope: `product` is fitted once per product, `catalogue` once on all products; `none` is not fitted to defects.
            The settings may choose, see `GeneratorConfig.capabilities`.
        keeps_background: pixels outside the returned mask equal the requested normal image exactly.
        predicts_mask: the returned mask may differ from the requested mask.
        needs_mask: a request must contain a mask.
        has_strength: the request's `strength` changes the defect.
        generates_normals: `generate_normals` generates defect-free images.
        zero_shot: answers requests for pairs of product and defect type that were not in the training examples.
        uses_backbone: needs the diffusion backbone.
    """

    scope: Literal["product", "catalogue", "none"] = "product"
    keeps_background: bool = False
    predicts_mask: bool = False
    needs_mask: bool = False
    has_strength: bool = False
    generates_normals: bool = False
    zero_shot: bool = False
    uses_backbone: bool = True


def generator_names() -> tuple[str, ...]:
    """Return the names of all registered generators: the built-in ones, then those of installed entry points."""
    return (*BUILT_IN, *sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)))


def generator_code_path(name: str) -> str:
    """Return the path of a generator's code, relative to the folder that contains `defect_core`.

    Stages depend on this path. A third-party generator is represented by this file, because its own package has a
    version.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].replace(".", "/")
    return "defect_core/generators/registry.py"


def generator_folder(product: str, name: str, capabilities: Capabilities | None = None) -> str:
    """Return the folder of a fitted generator in a project: one per product, or one for the catalogue.

    Args:
        product: name of the product.
        name: a registered generator.
        capabilities: with the settings of the project; None: for the default settings.
    """
    is_shared = (capabilities or generator_capabilities(name)).scope == "catalogue"
    return f"data/generator/{'catalogue' if is_shared else product}/{name}"


def generator_capabilities(name: str) -> Capabilities:
    """Return the capabilities of a registered generator.

    Raises:
        InputError: the name is unknown.
    """
    return _import(name, "config").CAPABILITIES


def generator_config(name: str, settings: dict[str, Any], where: str = "settings") -> GeneratorConfig:
    """Return a generator's validated settings.

    Args:
        name: a registered generator.
        settings: values that differ from the defaults.
        where: origin of the settings; error messages begin with it.

    Raises:
        InputError: the name or a key is unknown, or a value has a wrong type or range.
    """
    config_class: type[GeneratorConfig] = _import(name, "config").CONFIG
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        problems = describe_errors(error, config_class, settings)
        raise InputErrors([f"{where}.{'.'.join(filter(None, [name, key]))}: {why}" for key, why in problems]) from None


def generator_class(name: str) -> "type[Generator]":
    """Return the Generator class of a registered generator. This imports torch for methods that need it.

    Raises:
        InputError: the name is unknown.
    """
    return _import(name, "generator").GENERATOR


def _import(name: str, module: Literal["config", "generator"]) -> ModuleType:
    return import_module(f"{_package(name)}.{module}")


def _package(name: str) -> str:
    if name in BUILT_IN:
        return BUILT_IN[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.value
    raise InputError(f"generator {name!r} is unknown; {suggest(name, generator_names())}")
