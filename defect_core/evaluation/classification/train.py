"""Building, training and saving of a classifier of defect types."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defect_core.errors import InputError
from defect_core.evaluation.classification.config import ClassifierConfig
from defect_core.evaluation.classification.data import View, batch_plans
from defect_core.evaluation.segmentation.augment import augment_batch
from defect_core.evaluation.segmentation.data import hold_out
from defect_core.progress import track

CURVE_POINTS = 10
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect


class Classifier(nn.Module):
    """RGB images to one logit per defect type.

    Shape: `[B,3,S,S]` float in 0..255 -> `[B,K]`.
    """

    def __init__(self, architecture: str, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        self.network = get_model(architecture, weights=None, num_classes=classes)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # MobileNet's 0.01 has seen next to nothing after a few hundred steps
            elif isinstance(module, nn.Dropout):
                module.p = 0.0  # it draws from the global generator
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8], batch_size: int = 16) -> NDArray[np.float32]:
        """Probabilities float32 `[N,K]` of uint8 images `[N,S,S,3]`."""
        self.eval()
        device = self.mean.device
        parts = []
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).to(device).float()
            parts.append(self(batch).softmax(1).cpu().numpy())
        return np.concatenate(parts)


@dataclass(frozen=True)
class TrainedClassifier:
    """The model of the last step, in eval mode, and the curve: one dict per point with `step`, `loss` (mean since the
    point before) and, with a held-out slice, `val_accuracy`. `best` is the model of the point with the highest (the
    earliest of equals), None without a slice.
    """

    model: Classifier
    curve: list[dict]
    best: Classifier | None = None


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
    """Train on real and, where given, synthetic views; Adam and cross-entropy.

    Two arms with the same seed start from the same weights and see the same types in the same order, see
    `data.batch_plans`. Views are turned by a few degrees, scaled and shifted, but neither flipped nor turned upside
    down: a part that lies the wrong way round can be the defect itself. Deterministic on a CPU for a fixed number of
    threads.

    Args:
        real: views of real training images; a slice `config.validation_fraction` of them is held out.
        classes: number of types.
        seed: decides weights, batches and augmentation.
        weights: a file that `load_weights` reads; None starts at random.

    Raises:
        InputError: a type without a view, or weights that do not fit.
    """
    train, held = hold_out(real, config.validation_fraction)
    missing = sorted(set(range(classes)) - {view.label for view in (*train, *synthetic)})
    if missing:
        raise InputError(
            f"classify: {len(missing)} defect type(s) have no image to learn from beside the validation slice; "
            "expected at least one of each"
        )
    pools = [_stack(views, config.image_size).to(device) for views in (train, synthetic)]
    labels = [[view.label for view in views] for views in (train, synthetic)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config.architecture, classes)
    if weights is not None:
        load_weights(model, weights)
    model = model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed + 1)
    points = {config.steps * (i + 1) // CURVE_POINTS for i in range(CURVE_POINTS)}
    curve: list[dict] = []
    losses: list[float] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    plans = batch_plans(config, labels[0], labels[1], classes, seed)
    for step, plan in enumerate(track(plans, progress_label, total=config.steps), start=1):
        batch = torch.cat([pool[rows] for pool, rows in zip(pools, plan, strict=True) if rows]).float()
        target = torch.tensor([labels[kind][i] for kind, rows in enumerate(plan) for i in rows], device=device)
        blank = torch.zeros_like(batch[:, :1])
        images, _ = augment_batch(batch, blank, generator, mirror=False)
        loss = F.cross_entropy(model(images), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step in points:
            point = {"step": step, "loss": round(float(np.mean(losses)), 5)}
            losses = []
            if held:
                value = _accuracy(model, held)
                point["val_accuracy"] = round(value, 5)
                if best is None or value > best[0]:
                    best = value, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            curve.append(point)
            model.train()
    chosen = None
    if best is not None:
        chosen = Classifier(config.architecture, classes)
        chosen.load_state_dict(best[1])
        chosen = chosen.to(device).eval()
    return TrainedClassifier(model.eval(), curve, chosen)


def find_weights(name: str, folder: Path) -> Path:
    """The file of that name in the project's `folder`, else in the folder that DEFECTORY_WEIGHTS names.

    Raises:
        InputError: it is in neither.
    """
    given = os.environ.get("DEFECTORY_WEIGHTS")
    for path in (folder / name, *([Path(given) / name] if given else [])):
        if path.is_file():
            return path
    raise InputError(
        f"classify.weights: {name}: neither in the project nor in DEFECTORY_WEIGHTS; expected a safetensors file in "
        "torchvision's layout"
    )


def load_weights(model: Classifier, file: Path) -> None:
    """Take the weights of all layers but the last from a safetensors file with torchvision's names.

    Raises:
        InputError: the file is no safetensors, or lacks a layer or has one of another shape.
    """
    try:
        state = load_file(file)
    except Exception as error:  # safetensors raises types of its own
        raise InputError(f"{file.name}: not a safetensors file ({' '.join(str(error).split())[:120]})") from None
    own = model.network.state_dict()
    head = {name for name in own if name.startswith(_head(own))}
    for name, tensor in own.items():
        if name in head or name.endswith("num_batches_tracked"):
            continue
        if name not in state or state[name].shape != tensor.shape:
            found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise InputError(f"{file.name}: {name} {found}; expected {tuple(tensor.shape)}, as torchvision names it")
        own[name] = state[name]
    model.network.load_state_dict(own)


def save_classifier(model: Classifier, config: ClassifierConfig, classes: Sequence[str], file: Path) -> None:
    """Write weights, settings and the names of the types to one safetensors file (byte-stable)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    facts = {"config": config.model_dump(mode="json"), "classes": list(classes)}
    save_file(tensors, file, metadata={"classifier": json.dumps(facts, sort_keys=True)})


def _head(state: dict[str, Tensor]) -> str:
    """What the names of the last layer start with."""
    return next(reversed(state)).rpartition(".")[0]


def _accuracy(model: Classifier, views: Sequence[View]) -> float:
    found = model.predict(np.stack([view.image for view in views])).argmax(1)
    return float(np.mean(found == np.array([view.label for view in views])))


def _stack(views: Sequence[View], size: int) -> Tensor:
    """uint8 `[N,3,S,S]`."""
    if not views:
        return torch.zeros((0, 3, size, size), dtype=torch.uint8)
    return torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2).contiguous()
