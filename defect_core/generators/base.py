"""The contract of a generator: fitted once on real examples, it answers requests with image-mask pairs.

A new method subclasses `Generator`. Two bases implement most of it: `training_free.TrainingFreeGenerator` for methods
without weights and `trained.TrainedGenerator` for methods that train networks on a backbone.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from defect_core.data.files import write_json
from defect_core.data.guarded import read_json, require_keys
from defect_core.errors import InputError
from defect_core.generators.registry import Capabilities, GeneratorConfig

if TYPE_CHECKING:
    from defect_core.backbones.load import Backbone

ConfigT = TypeVar("ConfigT", bound=GeneratorConfig)
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """A real image in memory.

    Attributes:
        product: name of the product.
        defect: defect type; `good` for a normal image.
        image: uint8 [H, W, 3].
        mask: bool [H, W], True on defect pixels; None for a normal image.
        name: path of the image in the records.
        regions: of a normal image: bool [H, W] by defect type, where defects may be placed; `*` for all other types.
            Without an entry they may be placed everywhere.
    """

    product: str
    defect: str
    image: Image
    mask: Mask | None
    name: str
    regions: Mapping[str, Mask] = field(default_factory=dict[str, Mask])


@dataclass(frozen=True)
class SampleRequest:
    """A request for one synthetic pair.

    Attributes:
        sample_id: identifier, returned with the pair.
        product: name of the product.
        defect: defect type to generate.
        seed: the only source of randomness of this sample. The result does not depend on batch, shard or order.
        normal_image: normal image that receives the defect, uint8 [H, W, 3].
        mask: where the defect goes, bool [H, W].
        strength: strength of the defect, for methods with `Capabilities.has_strength`.
        source: real example whose mask was placed as `mask`.
        warped: image of `source` after the same placement, uint8 [H, W, 3].
        allowed: bool [H, W], where the mask of the pair may be; None: everywhere. A pair with a pixel outside is
            rejected.
    """

    sample_id: str
    product: str
    defect: str
    seed: int
    normal_image: Image | None = None
    mask: Mask | None = None
    strength: float | None = None
    source: Example | None = None
    warped: Image | None = None
    allowed: Mask | None = None


class CheckedRequest(SampleRequest):
    """A request that passed `check_request`: it has a normal image and a nonempty mask of the same size."""

    normal_image: Image
    mask: Mask


@dataclass(frozen=True)
class SyntheticPair:
    """A synthetic image with its mask.

    Attributes:
        sample_id: of the request.
        image: uint8 [H, W, 3], as large as the requested normal image.
        mask: bool [H, W], with at least one defect pixel.
        soft_mask: float32 [H, W] in [0, 1], for methods that predict one.
        metadata: JSON values about this sample. `prompt` and `strength` become columns of the manifest.
        reject_reason: why the generator rejects its own attempt, such as `no mask`; empty if it does not.
    """

    sample_id: str
    image: Image
    mask: Mask
    soft_mask: NDArray[np.float32] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    reject_reason: str = ""


class Generator(ABC):
    """A method that generates synthetic pairs.

    Attributes:
        name: name under which the registry lists the generator.
        capabilities: what the generator declares about itself.
    """

    name: ClassVar[str]
    capabilities: Capabilities

    @classmethod
    @abstractmethod
    def create(cls, config: GeneratorConfig, backbone: "Backbone | None") -> Self:
        """Return a generator that is not fitted.

        Args:
            config: settings; an instance of the `CONFIG` that the generator's package declares.
            backbone: diffusion backbone, or None for a method without `Capabilities.uses_backbone`. `fit` may change
                the weights of its denoiser.

        Raises:
            TypeError: `config` is of another class.
            InputError: the backbone lacks something that the method needs.
        """

    @abstractmethod
    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from real examples.

        A run that was killed continues from its last checkpoint when `fit` is called again with the same arguments.
        The resulting weights equal those of an uninterrupted run.

        Args:
            examples: defective and normal examples of one product; of all products with scope `catalogue`.
            work_dir: folder for checkpoints; created when needed.
            seed: the only source of randomness.

        Raises:
            InputError: the examples lack something that the method needs, such as a defect.
        """

    @abstractmethod
    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Yield one pair per request, in the order of the requests.

        The requests are processed as one batch, so the caller limits their number.

        Raises:
            InputError: a request cannot be answered, for example because of an unknown defect type.
        """

    def generate_normals(self, seeds: Sequence[int], references: Sequence[Image]) -> Iterator[Image]:
        """Yield one defect-free image per seed, uint8 [H, W, 3].

        Args:
            seeds: one per image.
            references: normal images [H, W, 3], used in turn; each generated image has the size of its reference.

        Raises:
            InputError: the method has no `Capabilities.generates_normals`, or there are no references.
        """
        raise InputError(f"{self.name}: cannot generate normal images; expected a generator that can, such as seas")

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything that `load` needs into `folder`, which is created when needed.

        The files contain no time, host name or path, so that the same fit writes the same bytes. The folder contains
        `generator.json` (see `write_description`) and `training.json`, an object with a list `loss`.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, backbone: "Backbone | None") -> Self:
        """Return the generator that `save` wrote.

        Args:
            folder: written by `save`.
            backbone: as in `create`, with the weights that the generator was fitted on.

        Raises:
            InputError: the folder has no generator, that of another method, or one fitted on another backbone.
        """


def check_config(name: str, config: GeneratorConfig, config_class: type[ConfigT]) -> ConfigT:
    """Return the settings of a generator, which are known to be of its class.

    Raises:
        TypeError: the settings are of another class.
    """
    if not isinstance(config, config_class):
        raise TypeError(f"{name}: settings are {type(config).__name__}; expected {config_class.__name__}")
    return config


def write_description(folder: Path, name: str, config: GeneratorConfig, **metadata: Any) -> None:
    """Write `generator.json` with sorted keys: the generator's name, its settings and further JSON values."""
    description = {"generator": name, "config": config.model_dump(mode="json"), **metadata}
    write_json(folder / "generator.json", description, ensure_ascii=True)


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """Return the contents of `generator.json`.

    Raises:
        InputError: the file is missing, or another generator wrote it.
    """
    path = folder / "generator.json"
    if not path.is_file():
        raise InputError(f"{folder}: generator.json is missing; expected a folder written by the finetune stage")
    description = read_json(path, ("generator",))
    if description["generator"] != name:
        raise InputError(f"{path}: was written by {description['generator']!r}; expected {name!r}")
    require_keys(description, path, "config")
    return description


def saved_generator_name(folder: Path) -> str:
    """Return the name of the method that saved a folder.

    Raises:
        InputError: the folder has no readable `generator.json`.
    """
    path = folder / "generator.json"
    if not path.is_file():
        raise InputError(f"{folder}: has no generator.json; expected a folder that a generator saved")
    return str(read_json(path, ("generator",))["generator"])


def write_training(folder: Path, training: dict[str, list[float]]) -> None:
    """Write `training.json`: the values recorded during the fit, such as `loss` of every step."""
    (folder / "training.json").write_text(json.dumps(training, allow_nan=False) + "\n")


def check_request(request: SampleRequest, fitted: Sequence[str]) -> CheckedRequest:
    """Return the request with a normal image and a mask that are known to be present.

    Args:
        request: any request.
        fitted: defect types that the generator knows.

    Raises:
        InputError: the defect type is unknown, or the image or mask is missing, or the mask is empty or of another
            size than the image.
    """
    if request.defect not in fitted:
        raise InputError(
            f"request {request.sample_id}: defect {request.defect!r} was not fitted; expected {' or '.join(fitted)}"
        )
    if request.normal_image is None or request.mask is None:
        raise InputError(f"request {request.sample_id}: expected a normal image and a mask")
    check_mask(request.sample_id, request.normal_image, request.mask)
    return CheckedRequest(**vars(request))


def check_mask(sample_id: str, normal_image: Image, mask: Mask) -> None:
    """Check that a requested mask fits its normal image.

    Raises:
        InputError: the mask is empty or of another size than the image.
    """
    if mask.shape != normal_image.shape[:2]:
        raise InputError(
            f"request {sample_id}: mask is {mask.shape}, image {normal_image.shape[:2]}; expected the same size"
        )
    if not mask.any():
        raise InputError(f"request {sample_id}: the mask is empty; expected at least one defect pixel")
