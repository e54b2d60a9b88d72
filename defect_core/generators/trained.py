"""The base class of generators that train networks on a diffusion backbone."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.data.foreground import find_foreground
from defect_core.data.guarded import read_tensors, require_keys
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing
from defect_core.errors import InputError, NonFiniteError
from defect_core.generators.base import (
    CheckedRequest,
    ConfigT,
    Example,
    Generator,
    check_config,
    read_description,
    write_description,
    write_training,
)
from defect_core.generators.registry import GeneratorConfig
from defect_core.training.guard import first_non_finite


class SavedGenerator(NamedTuple):
    """A folder that `TrainedGenerator.save` wrote.

    Attributes:
        folder: the folder.
        description: contents of `generator.json`.
    """

    folder: Path
    description: dict[str, Any]

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of `<name>.safetensors` on the CPU, numbers as float32."""
        stored, _ = read_tensors(self.folder / f"{name}.safetensors")
        return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in stored.items()}


class TrainedGenerator(Generator, Generic[ConfigT]):
    """Base class of generators that train networks on a diffusion backbone.

    It implements `create`, `save` and `load`. A subclass is written in these steps:

        class Seas(TrainedGenerator[SeasConfig]):
            name = "seas"
            capabilities = CAPABILITIES
            config_class = SeasConfig

            # 1. Parameters after `config` have defaults, which describe a generator that is not fitted.
            def __init__(self, backbone, config, product="", defects=()):
                super().__init__(backbone, config)

            # 2. `fit` trains, freezes and rounds the networks, and records values for `training.json`.
            def fit(self, examples, work_dir, seed):
                defective = self.defective_examples(examples)
                self.training = {"loss": train(unet, ...)}
                freeze_in_half_precision(unet)

            # 3. What `save` writes to `generator.json` besides method, settings and backbone ...
            def describe(self):
                return {"product": self.product, "defects": list(self.defects)}

            # ... and to one file of weights each: `unet.safetensors`.
            def state_dicts(self):
                return {"unet": self.backbone.denoiser.state_dict()}

            # 4. The inverse of `describe` and `state_dicts`.
            @classmethod
            def restore(cls, backbone, config, saved):
                generator = cls(backbone, config, saved.description["product"], saved.description["defects"])
                load_frozen(backbone.denoiser, saved.state_dict("unet"))
                return generator

            # 5. `sample` uses `check_request`, which returns a request whose image and mask are not None.
            def sample(self, requests): ...

    A method whose networks are not built by `__init__` also overrides `create`.

    Attributes:
        config_class: class of the settings.
        backbone: the diffusion backbone.
        config: the settings.
        training: values recorded by `fit`, such as the loss of every step; `training.json` keeps the order of the keys.
    """

    config_class: type[ConfigT]

    def __init__(self, backbone: Backbone, config: ConfigT) -> None:
        self.backbone, self.config = backbone, config
        if backbone.compute.gradient_checkpointing:
            enable_gradient_checkpointing(backbone.denoiser)  # this one works together with captured attention
        self.training: dict[str, list[float]] = {"loss": []}

    @classmethod
    def create(cls, config: GeneratorConfig, backbone: Backbone | None) -> Self:
        """Return a generator that is not fitted; see `Generator.create`."""
        return cls(cls._check_backbone(backbone), cls._check_config(config))

    def save(self, folder: Path) -> None:
        """Write `generator.json`, `training.json` and the weights in half precision, one file per state dict."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in self.state_dicts().items():
            halves = {key: _as_half(tensor).contiguous() for key, tensor in state.items()}
            broken = first_non_finite(halves.items())
            if broken is not None:
                raise NonFiniteError(
                    f"{self.name}: the weight {name}.{broken} is not finite in half precision; lower the learning rate"
                )
            save_file(halves, folder / f"{name}.safetensors")
        backbone = {"name": self.backbone.name, "digest": self.backbone.digest}
        write_description(folder, self.name, self.config, **self.describe(), backbone=backbone)
        write_training(folder, self.training)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone | None) -> Self:
        """Return the generator that `save` wrote; see `Generator.load`."""
        backbone = cls._check_backbone(backbone)
        description = read_description(folder, cls.name)
        require_keys(description, folder / "generator.json", "backbone")
        fitted_on = description["backbone"]
        if fitted_on.get("digest") != backbone.digest:
            raise InputError(
                f"{folder}: was fitted on backbone {fitted_on.get('name')!r} with other weights; "
                f"expected those of {backbone.name!r}: run the finetune stage again"
            )
        config = cls.config_class.model_validate(description["config"])
        return cls.restore(backbone, config, SavedGenerator(folder, description))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the JSON values that `restore` needs, such as the fitted defect types."""

    @abstractmethod
    def state_dicts(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the weights to save: file name without extension -> state dict."""

    @classmethod
    @abstractmethod
    def restore(cls, backbone: Backbone, config: ConfigT, saved: SavedGenerator) -> Self:
        """Return the fitted generator from the description and the weights in a folder."""

    def defective_examples(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples whose mask has a defect pixel.

        Raises:
            InputError: there are none.
        """
        defective = [example for example in examples if example.mask is not None and example.mask.any()]
        if not defective:
            raise InputError(f"{self.name}: no defect examples to learn from; expected at least one")
        return defective

    @classmethod
    def _check_config(cls, config: GeneratorConfig) -> ConfigT:
        return check_config(cls.name, config, cls.config_class)

    @classmethod
    def _check_backbone(cls, backbone: Backbone | None) -> Backbone:
        if backbone is None:
            raise InputError(f"{cls.name}: no backbone; expected one, such as load_backbone('embedded')")
        return backbone


def round_to_half(module: nn.Module) -> None:
    """Round parameters and saved buffers to half precision in place, so that saving and loading changes nothing."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(_as_half(tensor).to(tensor.dtype))


def _as_half(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in half precision; the others, such as counters of batch norm, unchanged."""
    return tensor.detach().half() if tensor.is_floating_point() else tensor.detach()


def freeze_in_half_precision(module: nn.Module) -> None:
    """Freeze a trained module and round its parameters to the half precision in which `save` stores them."""
    module.requires_grad_(False)
    round_to_half(module)


def load_frozen(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a module, freeze it and set it to evaluation mode."""
    module.load_state_dict(state)
    module.requires_grad_(False).eval()


def check_on_product(request: CheckedRequest) -> None:
    """Check that the requested mask overlaps the product (see `find_foreground`).

    Raises:
        InputError: no pixel of the mask is on the product.
    """
    if not (request.mask & find_foreground(request.normal_image)).any():
        raise InputError(
            f"request {request.sample_id}: the mask is outside the product on the normal image; expected an overlap"
        )
