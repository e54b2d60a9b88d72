"""PatchCore and DRAEM as anomalib has them: detectors that learn from good images alone.

The networks and losses are anomalib's torch modules; the loop is here, so that images, steps and seeds are those of the
other judges. Needs the extra `defectory[anomalib]`; only this file imports it. Nothing is downloaded.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defect_core.errors import InputError
from defect_core.evaluation.detection.config import DetectorConfig, DetectorName
from defect_core.progress import track

LITE0 = "tf_efficientnet_lite0"

Images = NDArray[np.uint8]


class Detector:
    """A fitted model: `predict` gives score maps, higher where it sees a defect.

    PatchCore's are distances, 0 and up; DRAEM's probabilities, 0 to 1.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        self.model, self.device = model.to(device), device
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))

    def batch(self, images: Images) -> Tensor:
        """uint8 `[N,S,S,3]` as the network expects it, float32 `[N,3,S,S]`."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        return ((tensor - self.mean) / self.std).to(self.device)

    @torch.no_grad()
    def predict(self, images: Images, batch_size: int = 8) -> NDArray[np.float32]:
        """Score maps float32 `[N,S,S]` of images uint8 `[N,S,S,3]`."""
        self.model.eval()
        parts = []
        for start in range(0, len(images), batch_size):
            found = self.model(self.batch(images[start : start + batch_size])).anomaly_map
            parts.append(found.reshape(len(found), *found.shape[-2:]).float().cpu().numpy())
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
        root: the folder that `config.weights` may be relative to.

    Raises:
        InputError: no normal image, anomalib is not installed, or the weights of the backbone are missing or do not
            fit.
    """
    if not len(normal):
        raise InputError("detect: no normal image to train on; expected at least one")
    _check_installed()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _seeded(seed):
        if model == "patchcore":
            return _fit_patchcore(normal, config, seed, device, root)
        return _fit_draem(normal, config, seed, device, label)


def _fit_patchcore(good: Images, config: DetectorConfig, seed: int, device: str, root: Path | None) -> Detector:
    """Roth et al. 2022: patch features of good images, thinned out to a coreset, are the memory."""
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
    shown = timm.get_pretrained_cfg(config.backbone)
    detector = Detector(model, shown.mean, shown.std, device)
    model.train()
    model.feature_extractor.eval()  # batch norms must not move
    rows = [model(detector.batch(good[i : i + config.batch_size])) for i in range(0, len(good), config.batch_size)]
    bank = torch.cat(rows)
    model.embedding_store.clear()
    # as `subsample_embedding` does, with a seed for the projection too; an integer would give all its rows one draw
    sampler = KCenterGreedy(embedding=bank, sampling_ratio=max(config.coreset, 1 / len(bank)))
    sampler.model.random_state = np.random.RandomState(seed % 2**32)
    torch.manual_seed(seed)  # again: reading weights for the first time draws some numbers
    model.memory_bank = sampler.sample_coreset()
    return detector


def _fit_draem(good: Images, config: DetectorConfig, seed: int, device: str, label: str) -> Detector:
    """Zavrtanik et al. 2021: repair images with made-up defects, and tell where they were."""
    from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
    from anomalib.models.image.draem.loss import DraemLoss
    from anomalib.models.image.draem.torch_model import DraemModel

    detector = Detector(DraemModel(), (0.0,) * 3, (1.0,) * 3, device)
    model, criterion = detector.model, DraemLoss()
    disturb = PerlinAnomalyGenerator(anomaly_source_path=None, blend_factor=(0.1, 1.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    milestones = [round(share * config.steps) for share in (0.8, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    rng = np.random.default_rng(seed)
    model.train()
    for _ in track(range(config.steps), label):
        clean = detector.batch(good[rng.integers(len(good), size=config.batch_size)])
        disturbed, mask = disturb(clean)
        repaired, found = model(disturbed)
        loss = criterion(clean, repaired, mask, found)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector


def _load_backbone(network: nn.Module, config: DetectorConfig, root: Path | None) -> None:
    """Fill timm's feature network; what lies behind its last stage is not needed and left out.

    Raises:
        InputError: the file is missing, or holds other tensors.
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

        state = load_file(_weights_file(config.weights, root))
    wanted = network.state_dict()
    wrong = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise InputError(
            f"detect.weights: {config.weights} lacks {wrong[0]} and {len(wrong) - 1} more of {config.backbone}; "
            "expected its state with timm's names"
        )
    network.load_state_dict({name: state[name].to(value.dtype) for name, value in wanted.items()})


def _weights_file(name: str, root: Path | None) -> Path:
    places = [folder for folder in (root, os.environ.get("DEFECTORY_WEIGHTS")) if folder]
    for folder in places:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise InputError(
        f"detect.weights: {name} is neither in the project nor in DEFECTORY_WEIGHTS; expected embedded, none, imagenet "
        "or a safetensors file with timm's names"
    )


def _check_installed() -> None:
    try:
        with warnings.catch_warnings():  # of its many dependencies
            warnings.simplefilter("ignore")
            import anomalib.models.image.draem
            import anomalib.models.image.patchcore  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"detect: anomalib cannot be imported ({error}); expected it installed: pip install 'defectory[anomalib]'"
        ) from None


@contextmanager
def _seeded(seed: int) -> Iterator[Any]:
    """Anomalib draws from torch's global generator, which is put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
