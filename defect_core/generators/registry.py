"""Which generators there are, what each capabilities, and where its settings and code lie.

A method is a package of two modules: `config` with `CAPABILITIES` and `Config`, and `generator` with `METHOD`, the
Generator class. Importing this module loads no torch, for only `generator` may import it. A third-party package
registers its method with an entry point in the group `defectory.generators` that names such a package.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from defect_core.errors import InputError

ENTRY_POINT_GROUP = "defectory.generators"
_BUILT_IN = {
    "anomaly-diffusion": "defect_core.generators.anomaly_diffusion",
    "cadiff": "defect_core.generators.cadiff",
    "crop-paste": "defect_core.generators.crop_paste",
    "cutpaste": "defect_core.generators.cutpaste",
    "defectdiffu": "defect_core.generators.defectdiffu",
    "disentangled-inversion": "defect_core.generators.disentangled_inversion",
    "draem-perlin": "defect_core.generators.perlin",
    "seas": "defect_core.generators.seas",
}


class GeneratorConfig(BaseModel):
    """Base of every method's settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Capabilities:
    """What a generator declares about itself; a shared test suite holds it to each.

    Attributes:
        scope: `product` is fitted once per product, `catalogue` once for all, `none` needs no fit.
        keeps_background: pixels outside the returned mask equal the requested normal image exactly.
        predicts_mask: the returned mask is its own, not the requested one.
        needs_mask: a request must hold a mask.
        has_strength: the request's strength changes the defect.
        generates_normals: can draw defect-free images.
        zero_shot: answers for (product, defect) pairs it has never seen.
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
    """Names of all registered generators: the built-in ones, then those of installed entry points."""
    return (*_BUILT_IN, *sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)))


def generator_code(name: str) -> str:
    """Folder of a built-in method relative to the folder that holds `defect_core`; what its stages depend on.

    A third-party method is represented by the registry file: its own code is versioned by its package.
    """
    module = _BUILT_IN.get(name, "defect_core.generators.registry")
    path = module.replace(".", "/")
    return path if name in _BUILT_IN else path + ".py"


def weights_folder(product: str, name: str) -> str:
    """Where a fitted generator lies in a project; one for all products where it is fitted on the catalogue."""
    shared = generator_capabilities(name).scope == "catalogue"
    return f"data/generator/{'catalogue' if shared else product}/{name}"


def generator_capabilities(name: str) -> Capabilities:
    """The capabilities of a registered generator. Raises InputError for an unknown name."""
    return _config_module(name).CAPABILITIES


def generator_config(name: str, settings: dict[str, Any], where: str = "settings") -> GeneratorConfig:
    """Validate a method's settings.

    Raises:
        InputError: unknown method, unknown key or wrong type; `where` begins the message.
    """
    config = _config_module(name).Config
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([name, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = ", ".join(config.model_fields)
            raise InputError(f"{where}.{field}: unknown key; expected one of {known}") from None
        raise InputError(
            f"{where}.{field}: {first['msg'][0].lower() + first['msg'][1:]}, found {first['input']!r}"
        ) from None


def generator_class(name: str) -> type:
    """The Generator class of a registered method (imports its network code)."""
    return import_module(_package(name) + ".generator").METHOD


def _config_module(name: str) -> Any:
    return import_module(_package(name) + ".config")


def _package(name: str) -> str:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.value
    raise InputError(f"generator {name!r} is unknown; expected one of {', '.join(generator_names())}")
