"""PatchCore and DRAEM of anomalib: detectors that are trained on normal images only.

The networks and losses are anomalib's torch modules. The training loop is here, so that images, steps and seeds are
those of the other downstream models. It needs the extra `defectory[anomalib]`, which only this module imports. Nothing
is downloaded.
"""

# pyright: reportMissingImports=false
# Reason: anomalib is an optional dependency.

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defect_core.errors import InputError
from defect_core.evaluation.detection.config import DetectorConfig, DetectorName
from defect_core.evaluation.weights import find_weights
from defect_core.progress import track
from defect_core.training.guard import FiniteGuard

LITE0 = "tf_efficientnet_lite0"
EXPECTED_WEIGHTS = "embedded, none, imagenet or a safetensors file with timm's names"

DRAEM_BLEND_RANGE = (0.1, 1.0)  # Opacity of the simulated defects (Zavrtanik et al. 2021).
# The learning rate is multiplied by the factor after these fractions of the steps (public code of DRAEM).
DRAEM_MILESTONES = (0.8, 0.9)
DRAEM_RATE_FACTOR = 0.2

Images = NDArray[np.uint8]


class Detector:
    """A trained detector.

    Args:
        model: network of anomalib.
        mean: mean of each channel that the network expects, for pixels in 0..1.
        std: standard deviation of each channel.
        device: torch device.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.model, self.device = model.to(device), device
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))

    def to_batch(self, images: Images) -> Tensor:
        """Return images uint8 `[N,S,S,3]` as normalised float32 `[N,3,S,S]`."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        return ((tensor - self.mean) / self.std).to(self.device)

    @torch.no_grad()
    def predict(self, images: Images, batch_size: int = 8) -> NDArray[np.float32]:
        """Return score maps float32 `[N,S,S]` of images uint8 `[N,S,S,3]`, higher where a defect is more likely.

        The scores of PatchCore are distances of at least 0, those of DRAEM probabilities.
        """
        self.model.eval()
        parts = []
        for start in range(0, len(images), batch_size):
            maps = self.model(self.to_batch(images[start : start + batch_size])).anomaly_map
            parts.append(maps.reshape(len(maps), *maps.shape[-2:]).float().cpu().numpy())
        return np.concatenate(parts)


def fit_detector(
    normal: Images,
    model: DetectorName,
    config: DetectorConfig,
    seed: int,
    label: str = "detector",
    root: Path | None = None,
) -> Detector:
    """Train a detector on normal images.

    Args:
        normal: uint8 `[N,S,S,3]`, real, or real and generated.
        model: `patchcore` or `draem`.
        config: settings.
        seed: decides the coreset of PatchCore, or the weights, batches and simulated defects of DRAEM.
        label: shown with the progress.
        root: folder that `config.weights` may be relative to.

    Raises:
        InputError: no normal image, anomalib is not installed, or the weights of the backbone are missing or do not
            fit.
    """
    if not len(normal):
        raise InputError("detect: no normal image to train on; expected at least one")
    _check_installed()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _seed_torch(seed):
        if model == "patchcore":
            return _fit_patchcore(normal, config, seed, device, root)
        return _fit_draem(normal, config, seed, device, label)


def _fit_patchcore(normal: Images, config: DetectorConfig, seed: int, device: str, root: Path | None) -> Detector:
    """Train PatchCore (Roth et al. 2022): its memory bank is a coreset of the patch features of normal images."""
    import timm
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    try:
        model = PatchcoreModel(
            layers=list(config.layers), backbone=config.backbone, pre_trained=config.weights == "imagenet"
        )
    except (RuntimeError, ValueError, IndexError, AssertionError, OSError) as error:
        raise InputError(
            f"detect: backbone {config.backbone!r}, layers {list(config.layers)}, weights {config.weights!r}: "
            f"{' '.join(str(error).split())}; expected a network of timm and its stages by number"
        ) from None
    _load_backbone(model.feature_extractor.feature_extractor, config, root)
    pretrained = timm.get_pretrained_cfg(config.backbone)
    if pretrained is None:
        raise InputError(f"detect.backbone: {config.backbone!r} has no normalisation in timm; expected another network")
    detector = Detector(model, pretrained.mean, pretrained.std, device)
    model.train()
    model.feature_extractor.eval()  # The batch statistics stay fixed.
    starts = range(0, len(normal), config.batch_size)
    bank = torch.cat([model(detector.to_batch(normal[i : i + config.batch_size])) for i in starts])
    model.embedding_store.clear()
    # As `subsample_embedding`, but with a seed for the random projection. An integer seed would make its rows equal.
    sampler = KCenterGreedy(embedding=bank, sampling_ratio=max(config.coreset, 1 / len(bank)))
    sampler.model.random_state = np.random.RandomState(seed % 2**32)
    torch.manual_seed(seed)  # Again, because loading weights for the first time uses random numbers.
    model.memory_bank = sampler.sample_coreset()
    return detector


def _fit_draem(normal: Images, config: DetectorConfig, seed: int, device: str, label: str) -> Detector:
    """Train DRAEM (Zavrtanik et al. 2021): it reconstructs simulated defects and segments them."""
    from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
    from anomalib.models.image.draem.loss import DraemLoss
    from anomalib.models.image.draem.torch_model import DraemModel

    detector = Detector(DraemModel(), (0.0,) * 3, (1.0,) * 3, device)
    model, criterion = detector.model, DraemLoss()
    simulate = PerlinAnomalyGenerator(anomaly_source_path=None, blend_factor=DRAEM_BLEND_RANGE)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    milestones = [round(fraction * config.steps) for fraction in DRAEM_MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=DRAEM_RATE_FACTOR)
    rng = np.random.default_rng(seed)
    guard = FiniteGuard(label, torch.device(device))
    model.train()
    for step in track(range(config.steps), label):
        clean = detector.to_batch(normal[rng.integers(len(normal), size=config.batch_size)])
        defective, mask = simulate(clean)
        reconstruction, prediction = model(defective)
        loss = criterion(clean, reconstruction, mask, prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        guard.end_step(step, loss=loss)
    guard.check_weights(model.state_dict().items(), config.steps)
    return detector


def _load_backbone(network: nn.Module, config: DetectorConfig, root: Path | None) -> None:
    """Load the weights of timm's feature network; the file may have more layers.

    Raises:
        InputError: the file is missing, or a layer is missing or has another shape.
    """
    if config.weights in ("none", "imagenet"):
        return
    if config.weights == "embedded":
        if config.backbone != LITE0:
            raise InputError(
                f"detect.weights: embedded is for {LITE0}, found backbone {config.backbone!r}; expected a file, none "
                "or imagenet"
            )
        from defect_core.metrics.features import load_lite0_state

        state = load_lite0_state()
    else:
        from safetensors.torch import load_file

        state = load_file(find_weights(config.weights, root, "detect.weights", EXPECTED_WEIGHTS))
    layers = network.state_dict()
    wrong = [name for name, value in layers.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise InputError(
            f"detect.weights: {config.weights} lacks {wrong[0]} and {len(wrong) - 1} more of {config.backbone}; "
            "expected its state with timm's names"
        )
    network.load_state_dict({name: state[name].to(value.dtype) for name, value in layers.items()})


def _check_installed() -> None:
    try:
        with warnings.catch_warnings():  # Its dependencies emit many.
            warnings.simplefilter("ignore")
            import anomalib.models.image.draem
            import anomalib.models.image.patchcore  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"detect: anomalib cannot be imported ({error}); expected it installed: pip install 'defectory[anomalib]'"
        ) from None


@contextmanager
def _seed_torch(seed: int) -> Iterator[None]:
    """Seed torch's global generator, which anomalib uses, and restore it afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
