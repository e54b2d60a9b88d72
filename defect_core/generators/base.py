"""The contract between the factory and a method: fitted once, it answers requests with image-mask pairs."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError
from defect_core.generators.registry import Capabilities, GeneratorConfig

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """A real image in memory, with the record's facts a generator may need.

    `image` is uint8 [H, W, 3], `mask` bool [H, W] or None for a good image, `name` its path in the records.
    """

    product: str
    defect: str
    image: Image
    mask: Mask | None
    name: str


@dataclass(frozen=True)
class SampleRequest:
    """What one synthetic pair should be.

    `mask` (bool, size of `normal_image`) says where the defect goes; `source` is the real example whose mask was
    placed there, and `warped` its image moved onto the normal image the same way. `seed` alone decides the
    randomness of this sample, so it does not depend on batch, shard or order.
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


@dataclass(frozen=True)
class SyntheticPair:
    """A synthetic image with its mask, in the size of the requested normal image.

    `soft_mask` (float32 [H, W], 0 to 1) where the method has one; `facts` go to the manifest (prompt, strength).
    """

    sample_id: str
    image: Image
    mask: Mask
    soft_mask: NDArray[np.float32] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Generator(ABC):
    """A method that draws defects.

    `fit` may be killed and called again with the same `work_dir`: it goes on where its last checkpoint was, and
    ends with the same weights as an undisturbed run. `save` writes a folder without time, host or path in it.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    @classmethod
    @abstractmethod
    def create(cls, config: GeneratorConfig, backbone: Any) -> "Generator":
        """An unfitted generator. `backbone` is None for a method that uses none; a fit changes its denoiser."""

    @abstractmethod
    def fit(self, examples: Sequence[Example], work_dir: Path, seed: int) -> None:
        """Learn from real examples of one product, good and defective; checkpoints go to `work_dir`."""

    @abstractmethod
    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[SyntheticPair]:
        """Answer requests, in their order."""

    def generate_normals(self, seeds: Sequence[int], references: Sequence[Image]) -> Iterator[Image]:
        """Defect-free images, one per seed, begun from the references in turn and of their sizes.

        Raises:
            InputError: this method draws none (see `Capabilities.generates_normals`).
        """
        raise InputError(f"{self.name}: draws no normal images; expected a generator that does, such as seas")

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything `load` needs into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, backbone: Any) -> "Generator":
        """Read what `save` wrote. Raises InputError when it was made by another method or on another backbone."""


def derive_seed(base_seed: int, product: str, generator: str, defect: str, index: int) -> int:
    """A 63-bit seed from what a sample is, so that it depends on nothing else (batch, shard, worker, order)."""
    text = "\x1f".join([str(base_seed), product, generator, defect, str(index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def write_description(folder: Path, name: str, config: GeneratorConfig, **facts: Any) -> None:
    """Write `generator.json`: method, settings and facts, sorted, so that the bytes are the same again."""
    description = {"generator": name, "config": config.model_dump(mode="json"), **facts}
    (folder / "generator.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """Read `generator.json` and check that it is this method's.

    Raises:
        InputError: no such file, or another method's.
    """
    path = folder / "generator.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no generator.json; expected a folder written by the finetune stage")
    description: dict[str, Any] = json.loads(path.read_text())
    if description["generator"] != name:
        raise InputError(f"{path}: was written by {description['generator']!r}; expected {name!r}")
    return description


def check_request(request: SampleRequest, fitted: Sequence[str]) -> None:
    """Refuse a request that the fitted generator cannot answer.

    Raises:
        InputError: unknown defect, or a mask that is missing, empty or of another size than the image.
    """
    if request.defect not in fitted:
        raise InputError(
            f"request {request.sample_id}: defect {request.defect!r} was not fitted; expected {' or '.join(fitted)}"
        )
    if request.normal_image is None or request.mask is None:
        raise InputError(f"request {request.sample_id}: expected a normal image and a mask")
    if request.mask.shape != request.normal_image.shape[:2]:
        raise InputError(
            f"request {request.sample_id}: mask is {request.mask.shape}, image {request.normal_image.shape[:2]}; "
            "expected the same size"
        )
    if not request.mask.any():
        raise InputError(f"request {request.sample_id}: the mask is empty; expected at least one defect pixel")
