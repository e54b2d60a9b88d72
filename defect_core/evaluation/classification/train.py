"""Building, training and saving of a classifier of defect types."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from defect_core.data.guarded import read_tensors
from defect_core.errors import InputError
from defect_core.evaluation.batches import hold_out
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import View, plan_batches
from defect_core.evaluation.segmentation.augment import augment_batch
from defect_core.evaluation.segmentation.model import IMAGENET_MEAN, IMAGENET_STD
from defect_core.evaluation.training import TrainedModel, Validation, train_model

# PyTorch's default. MobileNet's 0.01 hardly updates the batch statistics in a few hundred steps.
BATCH_NORM_MOMENTUM = 0.1


class Classifier(nn.Module):
    """A network that computes one logit per defect type.

    Args:
        architecture: architecture of torchvision.
        classes: number of defect types, K.

    Shape: `[B,3,S,S]` float in 0..255 -> `[B,K]`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        self.network = get_model(architecture, weights=None, num_classes=classes)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
            elif isinstance(module, nn.Dropout):
                module.p = 0.0  # Dropout would use the global random generator.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        return self.network((images - self.mean) / self.std)

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8], batch_size: int = 16) -> NDArray[np.float32]:
        """Return probabilities, float32 `[N,K]`, of uint8 images `[N,S,S,3]`."""
        self.eval()
        device = self.mean.device
        parts = []
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).to(device).float()
            parts.append(self(batch).softmax(1).cpu().numpy())
        return np.concatenate(parts)


TrainedClassifier = TrainedModel[Classifier]


def train_classifier(
    real: Sequence[View],
    synthetic: Sequence[View],
    classes: int,
    config: ClassifierConfig,
    seed: int,
    weights: Path | None = None,
    progress_label: str = "classify",
    device: str = "cpu",
) -> TrainedClassifier:
    """Train a classifier on real and synthetic views with Adam and cross-entropy.

    Two arms with the same seed start from the same weights and use the same defect types in the same order (see
    `data.plan_batches`). Views are rotated by a few degrees, scaled and shifted. They are not flipped or rotated by 90
    degrees, because the orientation of a part can be the defect. The result is deterministic on a CPU for a fixed
    number of threads.

    Args:
        real: views of real training images; the fraction `config.validation_fraction` is held out for validation.
        synthetic: views of synthetic images; empty for the arm `real_only`.
        classes: number of defect types.
        config: settings, the same for every arm.
        seed: decides the weights, the batches and the augmentation.
        weights: a file that `load_weights` reads; None: random weights.
        progress_label: shown with the progress.
        device: torch device that trains.

    Returns:
        The trained models and the curve, with the validation score `val_accuracy`.

    Raises:
        InputError: a defect type has no view, or the weights do not fit.
    """
    train, held = hold_out(real, config.validation_fraction)
    _check_labels([*train, *synthetic], classes)
    pools = [_stack(views, config.image_size).to(device) for views in (train, synthetic)]
    labels = [[view.label for view in views] for views in (train, synthetic)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config.architecture, classes)
    if weights is not None:
        load_weights(model, weights)
    model = model.to(device).train()
    generator = torch.Generator().manual_seed(seed + 1)

    def losses() -> Iterator[Tensor]:
        for plan in plan_batches(config, labels[0], labels[1], classes, seed):
            batch = torch.cat([pool[rows] for pool, rows in zip(pools, plan, strict=True) if rows]).float()
            target = torch.tensor([labels[kind][i] for kind, rows in enumerate(plan) for i in rows], device=device)
            images, _ = augment_batch(batch, torch.zeros_like(batch[:, :1]), generator, mirror=False)
            yield F.cross_entropy(model(images), target)

    return train_model(
        model,
        losses(),
        torch.optim.Adam(model.parameters(), lr=config.learning_rate),
        steps=config.steps,
        label=progress_label,
        validation=Validation("val_accuracy", lambda: _accuracy(model, held)) if held else None,
    )


def load_weights(model: Classifier, file: Path) -> None:
    """Load the weights of all layers except the last from a safetensors file with torchvision's names.

    Args:
        model: the classifier whose weights are replaced.
        file: safetensors file.

    Raises:
        InputError: the file is not a safetensors file, or a layer is missing or has another shape.
    """
    try:
        state, _ = read_tensors(file)
    except Exception as error:  # safetensors raises exceptions of several types.
        raise InputError(f"{file.name}: not a safetensors file ({' '.join(str(error).split())[:120]})") from None
    layers = model.network.state_dict()
    head = {name for name in layers if name.startswith(_last_layer(layers))}
    for name, tensor in layers.items():
        if name in head or name.endswith("num_batches_tracked"):
            continue
        if name not in state or state[name].shape != tensor.shape:
            found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise InputError(f"{file.name}: {name} {found}; expected {tuple(tensor.shape)}, as torchvision names it")
        layers[name] = state[name]
    model.network.load_state_dict(layers)


def save_classifier(model: Classifier, config: ClassifierConfig, classes: Sequence[str], file: Path) -> None:
    """Write weights, settings and defect types to a safetensors file; the same model gives the same bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    metadata = {"config": config.model_dump(mode="json"), "classes": list(classes)}
    save_file(tensors, file, metadata={"classifier": json.dumps(metadata, sort_keys=True)})


def _check_labels(views: Sequence[View], classes: int) -> None:
    missing = set(range(classes)) - {view.label for view in views}
    if missing:
        raise InputError(
            f"classify: {len(missing)} defect type(s) have no image to train on beside the validation part; expected "
            "at least one of each"
        )


def _last_layer(state: dict[str, Tensor]) -> str:
    """Return the prefix of the parameter names of the last layer."""
    return next(reversed(state)).rpartition(".")[0]


def _accuracy(model: Classifier, views: Sequence[View]) -> float:
    predicted = model.predict(np.stack([view.image for view in views])).argmax(1)
    return float(np.mean(predicted == np.array([view.label for view in views])))


def _stack(views: Sequence[View], size: int) -> Tensor:
    """Return uint8 `[N,3,S,S]`."""
    if not views:
        return torch.zeros((0, 3, size, size), dtype=torch.uint8)
    return torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2).contiguous()
